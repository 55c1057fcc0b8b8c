//! Network namespaces for `--network veth`: a hub with two bridges, a namespace per mover.
//!
//! Made with iproute2. Every name carries the lab's tag, so that nothing else is ever touched,
//! and removing a namespace removes all that is in it.

use std::process::Command;

use super::LabError;
use super::plan::{HUB_HOST_IP, VethPlan};

/// MTU of the movers' own interfaces: what AF_XDP on veth takes without fragments.
const MTU_BYTES: u16 = 1500;

/// All commands that make `plan`, in order; each is the arguments of one `ip`.
#[must_use]
pub fn commands(plan: &VethPlan) -> Vec<Vec<String>> {
    let hub = plan.hub.as_str();
    let mut lines = vec![
        format!("netns add {hub}"),
        format!("-n {hub} link set lo up"),
        format!("-n {hub} link add movers type bridge mcast_snooping 0"),
        format!("-n {hub} link set movers up"),
    ];
    let hosts = if plan.shared { "movers" } else { "hosts" };
    if !plan.shared {
        lines.push(format!("-n {hub} link add hosts type bridge mcast_snooping 0"));
        lines.push(format!("-n {hub} link set hosts up"));
    }
    lines.push(format!("-n {hub} addr add {HUB_HOST_IP}/24 dev {hosts}"));
    for (at, leg) in plan.legs.iter().enumerate() {
        let namespace = leg.namespace.as_str();
        lines.push(format!("netns add {namespace}"));
        lines.push(format!("-n {namespace} link set lo up"));
        for (poller, interface) in leg.interfaces.iter().enumerate() {
            let far = format!("m{at}-{poller}");
            lines.push(format!(
                "-n {namespace} link add {interface} mtu {MTU_BYTES} type veth peer name {far} \
                 mtu {MTU_BYTES} netns {hub}"
            ));
            lines.push(format!("-n {hub} link set {far} master movers up"));
            // The mover speaks here, not the kernel.
            lines.push(format!("-n {namespace} link set {interface} addrgenmode none"));
            lines.push(format!("-n {namespace} link set {interface} up"));
        }
        if plan.shared {
            // The kernel speaks there as well, under an address of its own.
            let first = leg.interfaces.first().map_or("net0", String::as_str);
            lines.push(format!("-n {namespace} addr add {}/24 dev {first}", leg.host_ip));
            continue;
        }
        let far = format!("h{at}");
        lines.push(format!("-n {namespace} link add host0 type veth peer name {far} netns {hub}"));
        lines.push(format!("-n {hub} link set {far} master hosts up"));
        lines.push(format!("-n {namespace} addr add {}/24 dev host0", leg.host_ip));
        lines.push(format!("-n {namespace} link set host0 up"));
    }
    lines.iter().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}

/// The namespaces of `plan`.
#[must_use]
pub fn names(plan: &VethPlan) -> Vec<String> {
    let legs = plan.legs.iter().map(|leg| leg.namespace.clone());
    std::iter::once(plan.hub.clone()).chain(legs).collect()
}

/// Makes everything in `plan`.
///
/// # Errors
/// The first `ip` that failed, in full. What was made until then is there still.
pub fn make(plan: &VethPlan) -> Result<(), LabError> {
    commands(plan).iter().try_for_each(|arguments| ip(arguments))
}

/// Removes namespaces; those that are not there are passed over.
pub fn remove(names: &[String]) {
    for name in names {
        if std::path::Path::new("/var/run/netns").join(name).exists()
            && let Err(error) = ip(&["netns".to_owned(), "del".to_owned(), name.clone()])
        {
            tracing::warn!(%error, "a namespace stays");
        }
    }
}

/// Which of a mover's frames are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// All.
    Both,
    /// Those that it sends.
    From,
    /// Those that it is sent.
    To,
}

/// Cuts the mover at `at` off the others: its own traffic, not that of hosts.
///
/// # Errors
/// The first command that failed, in full.
pub fn cut(plan: &VethPlan, at: usize, way: Way) -> Result<(), LabError> {
    run_all(&cuts(plan, at, way))
}

/// Undoes [`cut`].
///
/// # Errors
/// The first command that failed, in full.
pub fn mend(plan: &VethPlan, at: usize, way: Way) -> Result<(), LabError> {
    run_all(&mends(plan, at, way))
}

/// A queue without room at a port of the bridge loses what would leave by it. What comes in there is
/// lost by having the port lead to another bridge first, whose way on is such a queue.
fn cuts(plan: &VethPlan, at: usize, way: Way) -> Vec<String> {
    let hub = plan.hub.as_str();
    let mut lines = Vec::new();
    for far in ports(plan, at) {
        match way {
            Way::Both => lines.push(format!("ip -n {hub} link set {far} nomaster")),
            Way::To => lines.push(format!("tc -n {hub} qdisc add dev {far} root pfifo limit 0")),
            Way::From => lines.extend([
                format!("ip -n {hub} link add c{far} type bridge mcast_snooping 0"),
                format!("ip -n {hub} link add a{far} type veth peer name b{far}"),
                format!("tc -n {hub} qdisc add dev a{far} root pfifo limit 0"),
                format!("ip -n {hub} link set a{far} master c{far} up"),
                format!("ip -n {hub} link set b{far} master movers up"),
                format!("ip -n {hub} link set c{far} up"),
                format!("ip -n {hub} link set {far} master c{far}"),
            ]),
        }
    }
    lines
}

fn mends(plan: &VethPlan, at: usize, way: Way) -> Vec<String> {
    let hub = plan.hub.as_str();
    let mut lines = Vec::new();
    for far in ports(plan, at) {
        match way {
            Way::Both => lines.push(format!("ip -n {hub} link set {far} master movers")),
            Way::To => lines.push(format!("tc -n {hub} qdisc del dev {far} root")),
            Way::From => lines.extend([
                format!("ip -n {hub} link set {far} master movers"),
                format!("ip -n {hub} link del a{far}"),
                format!("ip -n {hub} link del c{far}"),
            ]),
        }
    }
    lines
}

/// The hub's ends of the mover's own interfaces.
fn ports(plan: &VethPlan, at: usize) -> impl Iterator<Item = String> {
    let count = plan.legs.get(at).map_or(0, |leg| leg.interfaces.len());
    (0..count).map(move |poller| format!("m{at}-{poller}"))
}

fn run_all(lines: &[String]) -> Result<(), LabError> {
    lines.iter().try_for_each(|line| {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        run(&words[0], &words[1..])
    })
}

fn ip(arguments: &[String]) -> Result<(), LabError> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &[String]) -> Result<(), LabError> {
    let command = || format!("{program} {}", arguments.join(" "));
    let failed = |said: String| LabError::Network { command: command(), said };
    let output =
        Command::new(program).args(arguments).output().map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::VethLeg;

    #[test]
    fn every_command_names_a_namespace_of_the_lab() {
        let leg = |name: &str| VethLeg {
            namespace: format!("slt-{name}"),
            interfaces: vec!["net0".into()],
            host_ip: [10, 78, 0, 1].into(),
        };
        let plan =
            |shared| VethPlan { hub: "slt-hub".into(), legs: vec![leg("p1"), leg("s1")], shared };
        let text = |shared| format!("{:?}", commands(&plan(shared)));
        assert!(text(false).contains("host0") && !text(true).contains("host0"));
        let both = [commands(&plan(true)), commands(&plan(false))].concat();
        let plan = plan(false);
        for command in both {
            assert!(
                command[1].starts_with("slt-") || command[2].starts_with("slt-"),
                "{command:?}"
            );
        }
        for way in [Way::Both, Way::From, Way::To] {
            for line in [cuts(&plan, 1, way), mends(&plan, 1, way)].concat() {
                assert!(line.contains(" -n slt-hub ") && line.contains("m1-0"), "{line}");
            }
        }
        assert_eq!(names(&plan), ["slt-hub", "slt-p1", "slt-s1"]);
    }
}
