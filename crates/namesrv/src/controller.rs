//! The controller: which broker of a set is its master. A namesrv has one when it is told to; routes and everything else a
//! namesrv does go on whatever becomes of it.
//!
//! [`sets`] is what the controllers agree on, [`leases`] what the leading one knows beside; both are pure.

pub mod leases;
pub mod sets;
