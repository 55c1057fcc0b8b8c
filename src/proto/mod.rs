//! The protocol, without IO: state machines that take inputs and yield commands.
