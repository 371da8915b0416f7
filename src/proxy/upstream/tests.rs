//! Our client against hyper's.
