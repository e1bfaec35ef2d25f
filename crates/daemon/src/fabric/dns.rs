//! DNS at 168.63.129.16. Not here: which names there are (see `vnet::host::platform`).
//!
//! One socket of each kind in each virtual network, so that whoever asks is in that network and hears its names only.

use std::{
    io,
    net::{IpAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use linux::{LinuxError, netns::Netns};
use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE,
    rdata::{A, AAAA, OPT, PTR, RData, SOA},
};
use store::Store;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use vnet::{
    host::{
        names::PLATFORM_ADDRESS,
        platform::{Found, LAB_ZONE, MACHINES_ZONE, lookup},
    },
    name::ArmId,
};

use super::{kept, upstream::Upstream};

/// Seconds that an answer may be remembered. A lab changes more often than a cloud.
const TTL: u32 = 10;
/// The largest answer over UDP that a client without EDNS takes (RFC 1035, 4.2.1).
const PLAIN_UDP: usize = 512;
/// The largest that this server sends over UDP (DNS flag day 2020).
const LARGEST_UDP: u16 = 1232;
/// How long a client may keep a connection without asking.
const IDLE: Duration = Duration::from_secs(10);
/// How many connections a network may have open.
const CONNECTIONS: usize = 100;

/// Answers in one virtual network.
pub(super) struct Server {
    pub(super) store: Store,
    pub(super) vnet: ArmId,
    /// Who is asked for what is not the lab's.
    pub(super) upstream: Option<Arc<Upstream>>,
}

impl Server {
    /// Listens in the namespace. The tasks end with the set.
    pub(super) fn serve(
        self,
        namespace: &Netns,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), LinuxError> {
        let at = SocketAddrV4::new(PLATFORM_ADDRESS, 53);
        let failed = |source| LinuxError::Socket { source };
        let udp = namespace.udp_bind(at)?;
        udp.set_nonblocking(true).map_err(failed)?;
        let udp = UdpSocket::from_std(udp).map_err(failed)?;
        let tcp = namespace.tcp_listen(at)?;
        tcp.set_nonblocking(true).map_err(failed)?;
        let tcp = TcpListener::from_std(tcp).map_err(failed)?;
        let server = Arc::new(self);
        tasks.spawn(Arc::clone(&server).serve_udp(Arc::new(udp)));
        tasks.spawn(server.serve_tcp(tcp));
        Ok(())
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; 4096];
        loop {
            let Ok((n, peer)) = socket.recv_from(&mut buffer).await else {
                // An ICMP error to an earlier answer, or no memory: neither ends the service.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            match self.reply(&buffer[..n], false) {
                Reply::Nothing => {}
                Reply::Known(answer) => drop(socket.send_to(&answer, peer).await),
                Reply::Forwarded => {
                    let (server, socket) = (Arc::clone(&self), Arc::clone(&socket));
                    let query = buffer[..n].to_vec();
                    tokio::spawn(async move {
                        let answer = server.forward(&query, false).await;
                        drop(socket.send_to(&answer, peer).await);
                    });
                }
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = Arc::clone(&self);
                    tokio::spawn(async move {
                        // Whoever hangs up has heard enough.
                        drop(server.converse(stream).await);
                        drop(place);
                    });
                }
                // Out of files, most likely: others end, and then there are some.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Answers one query after the other, each behind its length (RFC 1035, 4.2.2).
    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let length = timeout(IDLE, stream.read_u16()).await??;
            let mut query = vec![0; length.into()];
            timeout(IDLE, stream.read_exact(&mut query)).await??;
            let answer = match self.reply(&query, true) {
                Reply::Nothing => return Ok(()),
                Reply::Known(answer) => answer,
                Reply::Forwarded => self.forward(&query, true).await,
            };
            let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
            let mut framed = length.to_be_bytes().to_vec();
            framed.extend(answer);
            timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }

    fn reply(&self, query: &[u8], over_tcp: bool) -> Reply {
        let region = self.store.snapshot();
        let find = |name: &str| lookup(&region, &self.vnet, &kept::public_names(&region), name);
        reply(query, over_tcp, self.upstream.is_some(), find)
    }

    async fn forward(&self, query: &[u8], over_tcp: bool) -> Vec<u8> {
        let answer = match &self.upstream {
            Some(upstream) => upstream.ask(query, over_tcp).await,
            None => None,
        };
        answer.unwrap_or_else(|| refusal(query, RCODE::ServerFailure))
    }
}

/// What becomes of a query.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    /// It is none.
    Nothing,
    /// This is the answer.
    Known(Vec<u8>),
    /// Somebody else knows.
    Forwarded,
}

/// Answers a query by what `find` says of its name.
fn reply(query: &[u8], over_tcp: bool, forwards: bool, find: impl Fn(&str) -> Found) -> Reply {
    // What is too short to have an id, or is an answer itself, gets none: two servers would never end.
    if query.len() < 12 || query[2] & 0x80 != 0 {
        return Reply::Nothing;
    }
    let Ok(asked) = Packet::parse(query) else {
        return Reply::Known(refusal(query, RCODE::FormatError));
    };
    if asked.opcode() != OPCODE::StandardQuery {
        return Reply::Known(refusal(query, RCODE::NotImplemented));
    }
    let [question] = asked.questions.as_slice() else {
        return Reply::Known(refusal(query, RCODE::FormatError));
    };
    if !matches!(question.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY) {
        return Reply::Known(refusal(query, RCODE::Refused));
    }
    let name = question.qname.to_string();
    let found = find(&name);
    if forwards && found == Found::Elsewhere {
        return Reply::Forwarded;
    }
    let mut answer = Packet::new_reply(asked.id());
    answer.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if asked.has_flags(PacketFlag::RECURSION_DESIRED) {
        answer.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    answer.questions.push(question.clone());
    let zone = [MACHINES_ZONE, LAB_ZONE].into_iter().find(|zone| {
        let name = name.to_ascii_lowercase();
        name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    });
    let record = |data| ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data);
    let wants = |kind| question.qtype == QTYPE::ANY || question.qtype == QTYPE::TYPE(kind);
    let target;
    match &found {
        Found::Addresses(addresses) => {
            let records = addresses.iter().filter_map(|address| match address {
                IpAddr::V4(address) => wants(TYPE::A).then(|| RData::A(A::from(*address))),
                IpAddr::V6(address) => wants(TYPE::AAAA).then(|| RData::AAAA(AAAA::from(*address))),
            });
            answer.answers.extend(records.map(record));
        }
        Found::Name(name) if wants(TYPE::PTR) => {
            target = name.clone();
            if let Ok(name) = Name::new(&target) {
                answer.answers.push(record(RData::PTR(PTR(name))));
            }
        }
        Found::Name(_) => {}
        Found::Nobody | Found::Elsewhere => *answer.rcode_mut() = RCODE::NameError,
    }
    if let Some(zone) = zone {
        answer.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
        if answer.answers.is_empty() {
            answer.name_servers.push(authority(zone));
        }
    }
    let mut limit = if over_tcp { usize::from(u16::MAX) } else { PLAIN_UDP };
    if let Some(options) = asked.opt() {
        limit = limit.max(options.udp_packet_size.min(LARGEST_UDP).into());
        *answer.opt_mut() =
            Some(OPT { opt_codes: Vec::new(), udp_packet_size: LARGEST_UDP, version: 0 });
        if options.version != 0 {
            answer.answers.clear();
            answer.name_servers.clear();
            *answer.rcode_mut() = RCODE::BADVERS;
        }
    }
    let mut bytes = answer.build_bytes_vec_compressed();
    if bytes.as_ref().is_ok_and(|bytes| bytes.len() > limit) {
        answer.answers.clear();
        answer.set_flags(PacketFlag::TRUNCATION);
        bytes = answer.build_bytes_vec_compressed();
    }
    Reply::Known(bytes.unwrap_or_else(|_| refusal(query, RCODE::ServerFailure)))
}

/// How long the absence of a name may be remembered (RFC 2308).
fn authority(zone: &'static str) -> ResourceRecord<'static> {
    let soa = SOA {
        mname: Name::new_unchecked(zone),
        rname: Name::new_unchecked(zone),
        serial: 1,
        refresh: 900,
        retry: 300,
        expire: 604_800,
        minimum: TTL,
    };
    ResourceRecord::new(Name::new_unchecked(zone), CLASS::IN, TTL, RData::SOA(soa))
}

/// The header alone: an answer to what cannot be answered. `query` has a header at least.
fn refusal(query: &[u8], code: RCODE) -> Vec<u8> {
    let code = match code {
        RCODE::FormatError => 1,
        RCODE::NotImplemented => 4,
        RCODE::Refused => 5,
        _ => 2,
    };
    let mut answer = vec![0; 12];
    answer[..2].copy_from_slice(&query[..2]);
    // The same operation, recursion as desired; it is an answer, and recursion is available.
    answer[2] = 0x80 | (query[2] & 0x79);
    answer[3] = 0x80 | code;
    answer
}

#[cfg(test)]
mod tests {
    use simple_dns::Question;

    use super::*;

    fn query(name: &str, kind: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new_unchecked(name);
        packet.questions.push(Question::new(name, kind.into(), CLASS::IN.into(), false));
        packet.build_bytes_vec().expect("a query")
    }

    fn found(name: &str) -> Found {
        match name {
            "one.internal.cloudapp.net" => Found::Addresses(vec![[10, 1, 1, 4].into()]),
            "many.internal.cloudapp.net" => {
                Found::Addresses((0..200).map(|n| [10, 1, 1, n].into()).collect())
            }
            "web.eastus.cloudapp.azure.com" => {
                let six = "2001:2::4".parse().expect("an address");
                Found::Addresses(vec![[198, 18, 0, 4].into(), six])
            }
            "4.1.1.10.in-addr.arpa" => Found::Name("one.internal.cloudapp.net".to_owned()),
            "two.internal.cloudapp.net" => Found::Nobody,
            _ => Found::Elsewhere,
        }
    }

    /// The answer as text: its code, its flags (`a`uthoritative, `t`runcated), its records, its authorities' number.
    fn check(query: &[u8], over_tcp: bool, expected: &str) {
        let Reply::Known(bytes) = reply(query, over_tcp, false, found) else {
            panic!("{expected}: no answer");
        };
        let answer = Packet::parse(&bytes).expect("an answer");
        assert_eq!(answer.id(), 7, "{expected}");
        assert!(answer.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_AVAILABLE));
        let flags = [(PacketFlag::AUTHORITATIVE_ANSWER, 'a'), (PacketFlag::TRUNCATION, 't')];
        let flags: String =
            flags.iter().filter(|(flag, _)| answer.has_flags(*flag)).map(|(_, c)| c).collect();
        let records: Vec<String> = answer
            .answers
            .iter()
            .map(|record| match &record.rdata {
                RData::A(a) => std::net::Ipv4Addr::from(a.address).to_string(),
                RData::AAAA(a) => std::net::Ipv6Addr::from(a.address).to_string(),
                RData::PTR(name) => name.0.to_string(),
                other => format!("{other:?}"),
            })
            .collect();
        let records = if records.len() > 3 { records.len().to_string() } else { records.join(" ") };
        let n = answer.name_servers.len();
        assert_eq!(format!("{:?} {flags} {records} {n}", answer.rcode()), expected);
    }

    #[test]
    fn names_are_answered_by_kind() {
        for (name, kind, expected) in [
            ("one.internal.cloudapp.net", TYPE::A, "NoError a 10.1.1.4 0"),
            ("one.internal.cloudapp.net", TYPE::AAAA, "NoError a  1"),
            ("two.internal.cloudapp.net", TYPE::A, "NameError a  1"),
            ("web.eastus.cloudapp.azure.com", TYPE::A, "NoError  198.18.0.4 0"),
            ("web.eastus.cloudapp.azure.com", TYPE::AAAA, "NoError  2001:2::4 0"),
            ("web.eastus.cloudapp.azure.com", TYPE::PTR, "NoError   0"),
            ("4.1.1.10.in-addr.arpa", TYPE::PTR, "NoError  one.internal.cloudapp.net 0"),
            ("example.com", TYPE::A, "NameError   0"),
            ("many.internal.cloudapp.net", TYPE::A, "NoError at  0"),
        ] {
            check(&query(name, kind), false, expected);
        }
        check(&query("many.internal.cloudapp.net", TYPE::A), true, "NoError a 200 0");
    }

    #[test]
    fn what_is_not_the_labs_goes_on_when_there_is_somebody_to_ask() {
        let asked = query("example.com", TYPE::A);
        assert_eq!(reply(&asked, false, true, found), Reply::Forwarded);
        let own = query("two.internal.cloudapp.net", TYPE::A);
        assert!(matches!(reply(&own, false, true, found), Reply::Known(_)));
    }

    #[test]
    fn edns_is_answered_with_edns() {
        let plain = query("one.internal.cloudapp.net", TYPE::A);
        let mut packet = Packet::parse(&plain).expect("a query");
        *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: 4096, version: 0 });
        let Reply::Known(bytes) =
            reply(&packet.build_bytes_vec().expect("a query"), false, false, found)
        else {
            panic!("no answer");
        };
        let answer = Packet::parse(&bytes).expect("an answer");
        assert_eq!(answer.opt().map(|opt| opt.udp_packet_size), Some(LARGEST_UDP));
    }

    #[test]
    fn bad_queries_are_refused_and_answers_not_answered() {
        let good = query("one.internal.cloudapp.net", TYPE::A);
        assert_eq!(reply(&good[..11], false, false, found), Reply::Nothing);
        let mut answer = good.clone();
        answer[2] |= 0x80;
        assert_eq!(reply(&answer, false, false, found), Reply::Nothing);
        let code = |bytes: &[u8]| match reply(bytes, false, false, found) {
            Reply::Known(answer) => answer[3] & 15,
            other => panic!("{other:?}"),
        };
        let mut two = good.clone();
        two[5] = 2;
        assert_eq!(code(&two), 1, "format error");
        let mut update = good.clone();
        update[2] = 5 << 3;
        assert_eq!(code(&update), 4, "not implemented");
        let mut chaos = good.clone();
        *chaos.last_mut().expect("bytes") = 3;
        assert_eq!(code(&chaos), 5, "refused");
        let mut pointer = good;
        pointer[12] = 0xc0;
        pointer[13] = 12;
        assert_eq!(code(&pointer), 1, "a name that points at itself");
    }

    #[test]
    fn no_bytes_end_the_service() {
        // A small generator of its own: the same bytes every time.
        let mut seed = 0x9e37_79b9_u32;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 17;
            seed ^= seed << 5;
            seed.to_le_bytes()[0]
        };
        let good = query("one.internal.cloudapp.net", TYPE::A);
        for round in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..=round % 4 {
                let at = usize::from(next()) % bytes.len();
                bytes[at] = next();
            }
            bytes.truncate(12 + usize::from(next()) % 40);
            bytes[2] &= 0x7f;
            assert_ne!(reply(&bytes, false, false, found), Reply::Nothing);
        }
    }
}
