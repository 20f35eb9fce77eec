//! Binding: one listener per data thread, all on the same address. Runs on the thread that starts the server.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that wait in the kernel for their accept.
const BACKLOG: i32 = 1024;

/// `count` listeners on `address`; with port 0 the first takes a free port and the others the same. `takes_over`: another
/// server of this process has it, and gives it up.
pub(super) fn bind(mut address: SocketAddr, count: usize, takes_over: bool) -> io::Result<Vec<TcpListener>> {
    if !takes_over {
        refuse_if_taken(address)?;
    }
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// With SO_REUSEPORT a second process of the same user would bind without an error and take half of the clients. A
/// socket without it is refused while anyone listens.
fn refuse_if_taken(address: SocketAddr) -> io::Result<()> {
    socket(address)?.bind(&address.into())
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of the previous process that linger in TIME_WAIT do not keep the next one from starting.
    socket.set_reuse_address(true)?;
    Ok(socket)
}
