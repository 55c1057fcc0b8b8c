# shellcheck shell=bash
# What setup prints: one line per step with the time it took, everything else
# into a log whose name is printed when a step fails.

LOG=/dev/null
UI_STARTED=$SECONDS

# ui_start LOG_FILE
ui_start() {
    LOG=$1
    mkdir -p "$(dirname "$LOG")" 2>/dev/null ||
        die "cannot write to $(dirname "$LOG")." "Set XDG_CACHE_HOME to a directory that can be written."
    printf '== setup, %s\n' "$(date -u +%FT%TZ)" >"$LOG"
}

ok() { printf '  ok    %s\n' "$*"; }

note() { printf '  note  %s\n' "$*"; }

# die WHAT [WHAT TO DO]...
die() {
    printf '\n  error: %s\n' "$1" >&2
    shift
    (($#)) && printf '         %s\n' "$@" >&2
    exit 1
}

# die_log WHAT [WHAT TO DO]... : die, with the end of the log and its name
die_log() {
    printf '\n  the last lines of the log:\n' >&2
    tail -n 15 "$LOG" | sed 's/^/    | /' >&2
    die "$@" "The whole log: $LOG"
}

need_root() {
    ((EUID == 0)) || die "root is needed $1." "Run: sudo -E $0"
}

# step LABEL COMMAND... : runs COMMAND with its output in the log. On a
# terminal the line counts seconds (and ninja's n/m when the log has one).
step() {
    local label=$1 start=$SECONDS pid rc=0 mark=
    shift
    printf '\n== %s\n' "$label" >>"$LOG"
    if [[ ! -t 1 ]]; then
        printf '  ...   %s\n' "$label"
        "$@" >>"$LOG" 2>&1 </dev/null || rc=$?
    else
        "$@" >>"$LOG" 2>&1 </dev/null &
        pid=$!
        # shellcheck disable=SC2064
        trap "kill $pid 2>/dev/null; printf '\n'; exit 130" INT TERM
        while kill -0 "$pid" 2>/dev/null; do
            mark=$(tail -c 400 "$LOG" 2>/dev/null | grep -aoE '^\[[0-9]+/[0-9]+\]' | tail -n1) || true
            printf '\r  ...   %s %ds %s\033[K' "$label" $((SECONDS - start)) "$mark"
            sleep 0.5
        done
        wait "$pid" || rc=$?
        trap - INT TERM
        printf '\r\033[K'
    fi
    ((rc == 0)) || { printf '  FAIL  %s (%ds)\n' "$label" $((SECONDS - start)) >&2; return "$rc"; }
    printf '  ok    %s (%ds)\n' "$label" $((SECONDS - start))
}
