//! Paths of hosts and of movers (G9).

use super::*;

/// The lab's example, with a port of `kind` in the place of p1's memif to s1, and hosts at `address`.
fn port(kind: &str, address: &str) -> String {
    let memif =
        "kind = \"memif\"\nsocket = \"/dev/shm/setline/p1-s1.sock\"\nmemif_role = \"server\"";
    with(memif, kind).replace("address = \"127.0.0.1\"", &format!("address = \"{address}\""))
}

fn traffic(text: &str) -> Traffic {
    parse(text).unwrap_or_else(|error| panic!("{error}")).mover.traffic()
}

const AF_XDP: &str = "kind = \"af_xdp\"\ninterface = \"eth0\"";

#[test]
fn hosts_have_a_path_of_their_own_unless_a_port_says_otherwise() {
    assert_eq!(traffic(&lab()), Traffic::Separate);
    assert_eq!(traffic(&port(AF_XDP, "10.80.0.1")), Traffic::Separate);
    let shared = port(&format!("{AF_XDP}\nshared = true"), "10.80.0.1");
    assert_eq!(traffic(&shared), Traffic::Shared(vec!["to-s1".into()]));
    assert_eq!(traffic(&shared).to_string(), "shared: to-s1");
    let mover = parse(&shared).unwrap().mover;
    assert_eq!(Mover::parse("again", &mover.render().unwrap()).unwrap().mover, mover);
    let packet = "kind = \"af_packet\"\ninterface = \"eth0\"\nshared = true";
    assert_eq!(traffic(&port(packet, "10.77.13.9")), Traffic::Shared(vec!["to-s1".into()]));
    let none = lab();
    let start = none.find("[[listener]]").unwrap();
    let end = none.find("[[port]]").unwrap();
    assert_eq!(traffic(&format!("{}{}", &none[..start], &none[end..])), Traffic::NoHosts);
}

#[test]
fn paths_that_cannot_be_shared_are_refused() {
    let pci = "kind = \"pci\"\npci_address = \"0000:3b:00.0\"";
    for (text, expected) in [
        (
            port(&format!("{pci}\nshared = true"), "10.80.0.1"),
            "port[1].shared: found true, and port \"to-s1\" takes its NIC from the kernel; allowed: \
             false, or kind = \"af_xdp\" or \"af_packet\"",
        ),
        (
            with("mtu_bytes = 9000", "mtu_bytes = 9000\nshared = true"),
            "port[0].shared: found true, and no host can come by port \"to-p2\"",
        ),
        (
            port(&format!("{AF_XDP}\nshared = true"), "10.77.13.1"),
            "listener[1].address: found 10.77.13.1, which is port \"to-s1\"'s own",
        ),
    ] {
        let said = faults(&text);
        assert!(
            said.contains("error: ") && said.contains(expected),
            "{expected:?} not in:\n{said}"
        );
    }
}

#[test]
fn paths_that_look_shared_and_are_not_said_to_be_are_warned_of() {
    let said = faults(&port(AF_XDP, "10.77.13.2"));
    assert!(said.contains("warning: listener[1].address"), "{said}");
    assert!(said.contains("say shared = true at that port"), "{said}");
    let said = faults(&port("kind = \"pci\"\npci_address = \"0000:3b:00.0\"", "10.77.13.2"));
    assert!(said.contains("the kernel does not have that NIC"), "{said}");
}
