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
        format!("-n {hub} link add hosts type bridge mcast_snooping 0"),
        format!("-n {hub} addr add {HUB_HOST_IP}/24 dev hosts"),
        format!("-n {hub} link set hosts up"),
    ];
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

fn ip(arguments: &[String]) -> Result<(), LabError> {
    let failed =
        |said: String| LabError::Network { command: format!("ip {}", arguments.join(" ")), said };
    let output = Command::new("ip").args(arguments).output().map_err(|e| failed(e.to_string()))?;
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
        let plan = VethPlan { hub: "slt-hub".into(), legs: vec![leg("p1"), leg("s1")] };
        for command in commands(&plan) {
            assert!(
                command[1].starts_with("slt-") || command[2].starts_with("slt-"),
                "{command:?}"
            );
        }
        assert_eq!(names(&plan), ["slt-hub", "slt-p1", "slt-s1"]);
    }
}
