//! TUN devices: network interfaces whose other end is a descriptor.
//!
//! The relay itself never opens one. The labs of the integration tests and of the demo build their long-distance links from two of them,
//! because netem is a kernel module that many machines lack.
#![expect(
    unsafe_code,
    reason = "TUNSETIFF is an ioctl that no safe wrapper offers"
)]

use std::{
    ffi::c_int,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags},
    ioctl::{self, Opcode, Updater},
};

/// The longest interface name, without the NUL that ends it (`IFNAMSIZ` is 16).
const MAX_NAME: usize = 15;
/// `IFF_TUN | IFF_NO_PI` of `linux/if_tun.h`: IP packets, without a word of metadata in front.
const FLAGS: i16 = 0x0001 | 0x1000;
/// `_IOW('T', 202, int)`, as `linux/if_tun.h` has it, whatever this architecture makes of `_IOW`.
const TUNSETIFF: Opcode = ioctl::opcode::write::<c_int>(b'T', 202);

/// `struct ifreq` as far as TUNSETIFF looks: name and flags, then the rest of the union (24 bytes on 64-bit, where it is largest).
#[repr(C)]
struct InterfaceRequest {
    name: [u8; MAX_NAME + 1],
    flags: i16,
    rest: [u8; 22],
}

/// Makes the TUN interface `name` in the calling thread's network namespace; each read takes one IP packet that the kernel sent into it,
/// each write hands the kernel one that arrives there. The descriptor does not block. The interface goes when the descriptor is closed.
///
/// # Errors
/// `InvalidInput` for a name that is empty, holds a NUL or has more than 15 bytes; otherwise what the kernel says, most often
/// `PermissionDenied` (no CAP_NET_ADMIN in the namespace's owner, or no right to open `/dev/net/tun`) or `NotFound` (no such device).
pub fn open(name: &str) -> io::Result<OwnedFd> {
    if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("not an interface name: {name:?}"),
        ));
    }
    let device = rustix::fs::open(
        "/dev/net/tun",
        OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )?;
    let mut request = InterfaceRequest {
        name: [0; MAX_NAME + 1],
        flags: FLAGS,
        rest: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`: at most 40 bytes, which `InterfaceRequest` has in that layout and which live
    // on this stack for the whole call. The kernel keeps no pointer. Every bit pattern is a valid `InterfaceRequest`.
    unsafe {
        let set = Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request);
        ioctl::ioctl(device.as_fd(), set)?;
    }
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_size_of_struct_ifreq() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
    }

    #[test]
    fn a_name_that_cannot_be_one_is_refused() {
        for name in ["", "sixteen-bytes-xx", "nul\0"] {
            let error = open(name).expect_err("no device has this name");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
