//! A load generator with a fixed arrival rate, corrected for coordinated omission.
//!
//! Requests arrive as a Poisson process whatever the answers do; one that finds no free connection
//! waits in a queue, and its latency counts from its arrival, not from when it was sent. One
//! thread, epoll and a timerfd, so that it costs the core it shares with the proxy little.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde::{Deserialize, Serialize};

use crate::args::parse_seconds;

/// What to send.
#[derive(Clone, Debug, Args)]
pub struct Spec {
    /// Address of the proxy.
    #[arg(long)]
    pub address: SocketAddr,
    /// Requests per second.
    #[arg(long)]
    pub rate: f64,
    /// Keep-alive connections.
    #[arg(long, default_value_t = 32)]
    pub connections: usize,
    /// Seconds in which requests arrive; a fifth of that comes before as warm-up.
    #[arg(long, default_value = "2", value_parser = parse_seconds)]
    pub duration: Duration,
}

/// What was measured; latencies in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub requests: usize,
    pub rate: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

const TIMER: u64 = u64::MAX;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: backend\r\nuser-agent: compare\r\n\r\n";

/// Runs the load and prints the outcome as JSON.
pub fn main(spec: &Spec) -> Result<()> {
    let outcome = Generator::new(spec)?.run()?;
    serde_json::to_writer(io::stdout().lock(), &outcome)?;
    Ok(())
}

struct Generator {
    spec: Spec,
    epoll: Epoll,
    timer: TimerFd,
    connections: Vec<Connection>,
    free: VecDeque<usize>,
    /// Arrivals that wait for a free connection.
    waiting: VecDeque<Instant>,
    latencies: Vec<u64>,
    measure_from: Instant,
    rng: u64,
}

struct Connection {
    stream: TcpStream,
    arrived: Instant,
    busy: bool,
    answer: Vec<u8>,
}

impl Generator {
    fn new(spec: &Spec) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, TIMER))?;
        let now = Instant::now();
        let mut connections = Vec::with_capacity(spec.connections);
        for index in 0..spec.connections {
            let stream = TcpStream::connect(spec.address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
            connections.push(Connection { stream, arrived: now, busy: false, answer: Vec::new() });
        }
        Ok(Self {
            spec: spec.clone(),
            epoll,
            timer,
            free: (0..connections.len()).collect(),
            connections,
            waiting: VecDeque::new(),
            latencies: Vec::new(),
            measure_from: now + spec.duration / 5,
            rng: 0x9e37_79b9_7f4a_7c15,
        })
    }

    fn run(mut self) -> Result<Outcome> {
        let mut events = [EpollEvent::empty(); 64];
        let mut arrival = Instant::now();
        let end = self.measure_from + self.spec.duration;
        // A proxy that cannot keep up must not hold the comparison for ever.
        let give_up = end + Duration::from_secs(5);
        loop {
            let now = Instant::now();
            while arrival <= now && arrival < end {
                self.waiting.push_back(arrival);
                arrival += self.gap();
            }
            self.send()?;
            let idle = self.waiting.is_empty() && self.free.len() == self.connections.len();
            if arrival >= end && idle {
                break;
            }
            if now > give_up {
                bail!("{} requests unanswered", self.waiting.len());
            }
            let wait = arrival.min(give_up).saturating_duration_since(Instant::now());
            let wait = if arrival >= end { Duration::from_millis(100) } else { wait };
            if wait.is_zero() {
                self.receive(&mut events, EpollTimeout::ZERO)?;
            } else {
                let expiration = Expiration::OneShot(TimeSpec::from_duration(wait));
                self.timer.set(expiration, TimerSetTimeFlags::empty())?;
                self.receive(&mut events, EpollTimeout::NONE)?;
            }
        }
        self.outcome()
    }

    /// Exponential gap to the next arrival; the sequence is the same in every run.
    fn gap(&mut self) -> Duration {
        // xorshift64*, the upper 53 bits as a fraction in (0, 1].
        self.rng ^= self.rng >> 12;
        self.rng ^= self.rng << 25;
        self.rng ^= self.rng >> 27;
        let bits = self.rng.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        let uniform = (bits as f64 + 1.0) / (1_u64 << 53) as f64;
        Duration::from_secs_f64(-uniform.ln() / self.spec.rate)
    }

    fn send(&mut self) -> Result<()> {
        while let Some(&arrived) = self.waiting.front() {
            let Some(index) = self.free.pop_front() else { return Ok(()) };
            self.waiting.pop_front();
            let connection = &mut self.connections[index];
            connection.stream.write_all(REQUEST).context("cannot send")?;
            connection.arrived = arrived;
            connection.busy = true;
        }
        Ok(())
    }

    fn receive(&mut self, events: &mut [EpollEvent], timeout: EpollTimeout) -> Result<()> {
        let ready = match self.epoll.wait(events, timeout) {
            Ok(ready) => ready,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..ready] {
            if event.data() == TIMER {
                continue;
            }
            let index = usize::try_from(event.data())?;
            let connection = &mut self.connections[index];
            if connection.read()? {
                let now = Instant::now();
                let latency = now.duration_since(connection.arrived);
                connection.busy = false;
                if connection.arrived >= self.measure_from {
                    self.latencies.push(u64::try_from(latency.as_nanos())?);
                }
                self.free.push_back(index);
            }
        }
        Ok(())
    }

    fn outcome(mut self) -> Result<Outcome> {
        if self.latencies.is_empty() {
            bail!("no request was measured");
        }
        self.latencies.sort_unstable();
        let at = |share: f64| {
            let index = (self.latencies.len() as f64 * share) as usize;
            self.latencies[index.min(self.latencies.len() - 1)] as f64 / 1e3
        };
        Ok(Outcome {
            requests: self.latencies.len(),
            rate: self.latencies.len() as f64 / self.spec.duration.as_secs_f64(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        })
    }
}

impl Connection {
    /// Reads what is there; true when the answer is complete.
    fn read(&mut self) -> Result<bool> {
        let mut buffer = [0; 4096];
        let count = match self.stream.read(&mut buffer) {
            Ok(0) => bail!("connection closed by the proxy"),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if !self.busy {
            bail!("bytes nobody asked for");
        }
        self.answer.extend_from_slice(&buffer[..count]);
        let Some(length) = answer_length(&self.answer)? else { return Ok(false) };
        let complete = self.answer.len() >= length;
        if complete {
            self.answer.clear();
        }
        Ok(complete)
    }
}

/// Length of head and body, when the head is complete; anything but 200 is an error.
fn answer_length(answer: &[u8]) -> Result<Option<usize>> {
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&answer[..head]);
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        bail!("answered {status}");
    }
    let body = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("an answer without content-length")?
        .1
        .trim()
        .parse::<usize>()?;
    Ok(Some(head + 4 + body))
}
