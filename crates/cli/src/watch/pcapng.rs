//! Packets in a file that Wireshark and tcpdump read (pcapng, draft-ietf-opsawg-pcapng): one section, an
//! interface for each link, times in nanoseconds. A file that ends early is still a whole one.

use std::io::{self, Write};

use linux::packets::{Direction, Frame};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u16 = 1;

/// Writes packets to `out` as they come.
pub(crate) struct Writer<W: Write> {
    out: W,
    n_interfaces: u32,
}

impl<W: Write> Writer<W> {
    /// Begins the file.
    pub(crate) fn new(mut out: W) -> io::Result<Self> {
        let mut body = Vec::new();
        body.extend(BYTE_ORDER.to_ne_bytes());
        body.extend(1_u16.to_ne_bytes());
        body.extend(0_u16.to_ne_bytes());
        // The section's length is not known.
        body.extend((-1_i64).to_ne_bytes());
        let version = concat!("aksnet ", env!("CARGO_PKG_VERSION"));
        option(&mut body, 4, version.as_bytes());
        end_of_options(&mut body);
        block(&mut out, SECTION, &body)?;
        Ok(Self { out, n_interfaces: 0 })
    }

    /// Names a link; its packets say the number that this gives. All are named before the first packet.
    pub(crate) fn interface(&mut self, name: &str) -> io::Result<u32> {
        let mut body = Vec::new();
        body.extend(ETHERNET.to_ne_bytes());
        body.extend(0_u16.to_ne_bytes());
        // No limit to a packet's length.
        body.extend(0_u32.to_ne_bytes());
        option(&mut body, 2, name.as_bytes());
        // Times are in units of 10^-9 seconds.
        option(&mut body, 9, &[9]);
        end_of_options(&mut body);
        block(&mut self.out, INTERFACE, &body)?;
        self.n_interfaces += 1;
        Ok(self.n_interfaces - 1)
    }

    /// Writes a packet.
    pub(crate) fn packet(&mut self, interface: u32, frame: &Frame) -> io::Result<()> {
        let time = u64::try_from(frame.at.as_nanos()).unwrap_or(u64::MAX);
        let (high, low) = (time >> 32, time & u64::from(u32::MAX));
        let half = |half: u64| u32::try_from(half).unwrap_or_default().to_ne_bytes();
        let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_ne_bytes();
        let mut body = Vec::with_capacity(frame.data.len() + 40);
        body.extend(interface.to_ne_bytes());
        body.extend(half(high));
        body.extend(half(low));
        body.extend(length(frame.data.len()));
        body.extend(length(frame.length));
        body.extend(&frame.data);
        body.resize(body.len().next_multiple_of(4), 0);
        let direction: u32 = match frame.direction {
            Direction::In => 1,
            Direction::Out => 2,
        };
        option(&mut body, 2, &direction.to_ne_bytes());
        end_of_options(&mut body);
        block(&mut self.out, PACKET, &body)
    }

    /// Hands on what has been written.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn block(out: &mut impl Write, kind: u32, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len() + 12).unwrap_or(u32::MAX).to_ne_bytes();
    out.write_all(&kind.to_ne_bytes())?;
    out.write_all(&length)?;
    out.write_all(body)?;
    out.write_all(&length)
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..value.len().min(1000)).unwrap_or_default();
    body.extend(code.to_ne_bytes());
    body.extend(u16::try_from(value.len()).unwrap_or_default().to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn end_of_options(body: &mut Vec<u8>) {
    body.extend([0; 4]);
}
