//! The protocol, without IO: state machines that take inputs (host update, message, block
//! completion, control input, time) and yield commands (send, write, complete, report).
//!
//! No clocks, threads, sockets, randomness or global state. The pollers and the simulator drive
//! this very code. It builds without `std` (`tests/no-std`).

pub mod assignment;
pub mod boundary;
pub mod command;
pub mod limits;
pub mod link;
pub mod losses;
pub mod membership;
pub mod message;
pub mod node;
pub mod primary;
pub mod ranges;
pub mod sabotage;
pub mod secondary;
pub mod time;
pub mod timer;
pub mod types;
