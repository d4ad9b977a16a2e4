//! Where clients reach a daemon.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

use zklora_proto::{Address, PublicKey};

/// What clients are to dial in place of the address that is listened on: a name or an IP address, and perhaps another port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertised {
    /// An IPv6 address is in brackets.
    host: String,
    port: Option<u16>,
}

impl FromStr for Advertised {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected a host, and perhaps a port, such as proofs.example, proofs.example:30000, \
             203.0.113.7 or [2001:db8::7]:30000";
        if let Ok(ip) = text.parse::<IpAddr>() {
            return if ip.is_unspecified() {
                Err(EXPECTED)
            } else {
                Ok(Self { host: host_of(ip), port: None })
            };
        }
        // The colons of an IPv6 address are within its brackets.
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                let port = port.parse().ok().filter(|port| *port > 0);
                (host, Some(port.ok_or(EXPECTED)?))
            }
            _ => (text, None),
        };
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let is_name = |host: &str| {
            let label = |label: &str| {
                !label.is_empty()
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            };
            host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(label)
        };
        let valid = match bracketed {
            Some(ip) => ip.parse::<Ipv6Addr>().is_ok_and(|ip| !ip.is_unspecified()),
            None => is_name(host) && host.parse() != Ok(Ipv4Addr::UNSPECIFIED),
        };
        if valid { Ok(Self { host: host.into(), port }) } else { Err(EXPECTED) }
    }
}

impl fmt::Display for Advertised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Where clients reach what listens at `local`, at least one address: as advertised; or else where it listens; or else, if that is at every
/// address of this machine, at those by which it reaches others.
pub fn addresses(key: PublicKey, local: SocketAddr, advertised: Option<&Advertised>) -> Vec<Address> {
    let at = |host: String, port: u16| Address { key, host, port };
    if let Some(Advertised { host, port }) = advertised {
        return vec![at(host.clone(), port.unwrap_or(local.port()))];
    }
    let of = |ip: IpAddr| at(host_of(ip), local.port());
    let mut found: Vec<Address> = match local.ip() {
        ip if !ip.is_unspecified() => vec![of(ip)],
        IpAddr::V4(_) => outward(IPV4).into_iter().map(of).collect(),
        // Who listens at every address of IPv6 mostly does so for IPv4, too.
        IpAddr::V6(_) => [IPV4, IPV6].into_iter().filter_map(outward).map(of).collect(),
    };
    if found.is_empty() {
        found.push(of(if local.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }));
    }
    found
}

/// Addresses for documentation (RFC 5737, RFC 3849), to which nothing is sent.
const IPV4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const IPV6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// The address of this machine on the way to another; `None` without a way. A socket for datagrams that is connected sends nothing. To ask for all
/// addresses would take a kind of socket that the packaged service may not have.
fn outward(to: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((to, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}

/// The host part of an address: an IPv6 address in brackets.
fn host_of(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

#[cfg(test)]
mod tests {
    use zklora_proto::SecretKey;

    use super::*;

    #[test]
    fn what_is_advertised_is_a_host_and_perhaps_a_port() {
        for (text, shown) in [
            ("proofs.example", "proofs.example"),
            ("proofs.example:30001", "proofs.example:30001"),
            ("203.0.113.7:1", "203.0.113.7:1"),
            ("2001:db8::7", "[2001:db8::7]"),
            ("[2001:db8::7]", "[2001:db8::7]"),
            ("[2001:db8::7]:65535", "[2001:db8::7]:65535"),
            ("my_host", "my_host"),
        ] {
            assert_eq!(text.parse::<Advertised>().unwrap().to_string(), shown);
        }
        let wrong = [
            "",
            ":30000",
            "a:",
            "a:0",
            "a:70000",
            "a b",
            "a@b",
            "zklora://a",
            "0.0.0.0",
            "0.0.0.0:3",
            "::",
            "[::]:3",
            "[a]",
            "a..b",
            "a/b",
        ];
        for text in wrong {
            assert!(text.parse::<Advertised>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_to_dial_is_never_every_address() {
        let key = SecretKey::generate().public();
        let hosts = |local: &str, advertised: Option<&str>| -> Vec<String> {
            let advertised = advertised.map(|text| text.parse().unwrap());
            let addresses = addresses(key, local.parse().unwrap(), advertised.as_ref());
            addresses.into_iter().map(|address| format!("{}:{}", address.host, address.port)).collect()
        };
        assert_eq!(hosts("127.0.0.1:5", None), ["127.0.0.1:5"]);
        assert_eq!(hosts("[::1]:5", None), ["[::1]:5"]);
        assert_eq!(hosts("0.0.0.0:5", Some("proofs.example")), ["proofs.example:5"]);
        assert_eq!(hosts("[::]:5", Some("proofs.example:6")), ["proofs.example:6"]);
        for local in ["0.0.0.0:5", "[::]:5"] {
            let hosts = hosts(local, None);
            assert!(!hosts.is_empty());
            for host in hosts {
                assert!(
                    host.ends_with(":5") && !host.starts_with("0.0.0.0") && !host.starts_with("[::]"),
                    "{host}"
                );
            }
        }
    }
}
