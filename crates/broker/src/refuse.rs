//! What the store's errors mean for a client. The codes themselves are chosen in `karman_remoting::status`.

use karman_remoting::status::Rejection;
use karman_store::{AppendError, ReadError};

/// Why something was not stored.
pub fn append(error: AppendError) -> Rejection {
    match error {
        AppendError::Overloaded { .. } | AppendError::Expired { .. } => {
            Rejection::TooManyRequests(error.to_string())
        }
        AppendError::DiskFull { .. } | AppendError::DiskUsed { .. } => {
            Rejection::StoreFull(error.to_string())
        }
        other => Rejection::Internal(other.to_string()),
    }
}

/// Why something could not be read.
pub fn read(error: &ReadError) -> Rejection {
    Rejection::Internal(error.to_string())
}
