//! A lab that a test begins in its own process and drives by hand, and what hosts of it need to know.
#![allow(dead_code, reason = "each test uses its part")]

use clap::Parser;
use indicatif::ProgressBar;
use setline::config::{Listener, Mover};
use setline::lab::cluster::Cluster;
use setline::lab::interrupt::Interrupt;
use setline::lab::options::Shape;
use setline::spdk::address::Address;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    shape: Shape,
}

/// A lab whose first set has gone the whole way; it is ended and removed when it goes.
pub(crate) struct Begun {
    pub(crate) cluster: Cluster,
    interrupt: Interrupt,
}

impl Begun {
    /// Begins a lab of the shape that these arguments of `setline lab` ask for.
    pub(crate) fn new(shape: &str) -> Self {
        let words = std::iter::once("lab").chain(shape.split_whitespace());
        let Line { shape } = Line::parse_from(words);
        let interrupt = Interrupt::take().unwrap();
        let mut cluster = Cluster::make(&shape, true).unwrap();
        cluster.remove_directory();
        cluster.start_all(&interrupt, &ProgressBar::hidden()).unwrap();
        let mut begun = Self { cluster, interrupt };
        begun.wait_consistent();
        begun
    }

    pub(crate) fn wait_consistent(&mut self) {
        self.cluster.wait_consistent(&self.interrupt).unwrap();
    }

    /// A mover's configuration.
    pub(crate) fn config(&self, name: &str) -> Mover {
        let mut movers = self.cluster.plan().movers.iter();
        movers.find(|mover| mover.config.mover.name == name).unwrap().config.clone()
    }

    /// Starts a mover that was killed, and waits until it is ready.
    pub(crate) fn start_again(&mut self, name: &str) {
        self.cluster.start(name).unwrap();
        let ready = [name.to_owned()];
        self.cluster.wait_ready(&ready, &self.interrupt, &ProgressBar::hidden()).unwrap();
    }

    /// Starts what was killed of the programs that movers need.
    pub(crate) fn start_services(&mut self) {
        self.cluster.start_services(&self.interrupt).unwrap();
    }
}

/// Where hosts reach a mover.
pub(crate) fn address(mover: &Mover) -> Address {
    match &mover.listeners[0] {
        Listener::VfioUser { directory } => {
            Address::VfioUser(mover.groups[0].vfio_user_directory(directory))
        }
        Listener::Tcp { address, port } => Address::Tcp((*address, *port).into()),
    }
}
