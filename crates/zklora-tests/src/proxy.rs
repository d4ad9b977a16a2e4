//! A bad network: a UDP proxy that loses, delays, reorders and repeats packets, or carries nothing at all.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What happens to a packet.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Of a thousand packets, so many are lost.
    pub lost: u32,
    /// Of a thousand packets, so many arrive twice.
    pub repeated: u32,
    /// Each is late by up to this much, and so overtaken by others.
    pub late: Duration,
}

/// One client's way to a server, for as long as this is there.
pub struct Proxy {
    pub address: SocketAddr,
    cut: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    /// Packets that were lost.
    pub lost: Arc<AtomicU64>,
}

impl Proxy {
    pub fn new(server: SocketAddr, weather: Weather) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").unwrap();
        back.connect(server).unwrap();
        let proxy = Self {
            address: front.local_addr().unwrap(),
            cut: Arc::default(),
            ended: Arc::default(),
            lost: Arc::default(),
        };
        let (cut, ended, lost) = (proxy.cut.clone(), proxy.ended.clone(), proxy.lost.clone());
        std::thread::spawn(move || carry(&front, &back, weather, &cut, &ended, &lost));
        proxy
    }

    /// From now on, or no longer, nothing is carried in either direction.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// A packet that is under way: when it arrives, whether at the server, and its bytes.
type Packet = Reverse<(Instant, bool, Vec<u8>)>;

fn carry(
    front: &UdpSocket,
    back: &UdpSocket,
    weather: Weather,
    cut: &AtomicBool,
    ended: &AtomicBool,
    lost: &AtomicU64,
) {
    let mut rng = StdRng::seed_from_u64(1);
    let mut under_way = BinaryHeap::<Packet>::new();
    let mut client = None;
    let mut bytes = vec![0; 1 << 16];
    for socket in [front, back] {
        socket.set_nonblocking(true).unwrap();
    }
    while !ended.load(Ordering::Relaxed) {
        let mut idle = true;
        for (socket, to_server) in [(front, true), (back, false)] {
            // A server that is not there refuses, which is no end of the way to it.
            let Ok((length, from)) = socket.recv_from(&mut bytes) else { continue };
            idle = false;
            if to_server {
                client = Some(from);
            }
            if cut.load(Ordering::Relaxed) || rng.random_range(0..1000) < weather.lost {
                lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let copies = 1 + u32::from(rng.random_range(0..1000) < weather.repeated);
            for _ in 0..copies {
                let late = weather.late.mul_f64(rng.random_range(0.0..1.0));
                under_way.push(Reverse((Instant::now() + late, to_server, bytes[..length].to_vec())));
            }
        }
        while under_way.peek().is_some_and(|Reverse((at, ..))| *at <= Instant::now()) {
            let Some(Reverse((_, to_server, packet))) = under_way.pop() else { break };
            idle = false;
            // What a full buffer or a dead server refuses is lost, as in any network.
            let _ = match (to_server, client) {
                (true, _) => back.send(&packet),
                (false, Some(client)) => front.send_to(&packet, client),
                (false, None) => continue,
            };
        }
        if idle {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
