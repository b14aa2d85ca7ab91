//! TLS and HTTP/2: hosts whose certificates are no good, whose handshakes stall, whose streams and connections are ended from
//! above. Certificates are made here; every case has an account, a name and a port of its own.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::bench::{Bench, Line};
use crate::cases::black_hole;
use crate::names::run_inside;
use crate::support::faults::{Fault, Place, Target, Then};

struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().clone();
    Authority { der, issuer: Issuer::new(params, key) }
}

fn acceptor(chain: CertificateDer<'static>, key: &KeyPair) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// A TLS side for `name`, valid in these years; signed by itself without an authority.
fn tls_for(authority: Option<&Authority>, name: &str, years: [i32; 2]) -> TlsAcceptor {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = date_time_ymd(years[0], 1, 1);
    params.not_after = date_time_ymd(years[1], 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = match authority {
        Some(authority) => params.signed_by(&key, &authority.issuer).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    acceptor(certificate.der().clone(), &key)
}

/// What a host does with a request for a repository, over HTTP/2.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deed {
    Serve,
    /// RST_STREAM instead of headers.
    ResetBefore,
    /// RST_STREAM in the middle of the body.
    ResetWithin,
    /// RST_STREAM before the last bytes.
    ResetLast,
    /// GOAWAY instead of an answer.
    GoAway,
    /// GOAWAY in the middle of the body.
    GoAwayWithin,
}

/// What a host does with a connection, instead of TLS.
#[derive(Clone, Copy)]
enum Rude {
    /// The alert of a server that speaks only TLS 1.1: protocol version.
    OldTls,
    Stall,
    HangUp,
    Plain,
}

enum Host {
    /// Nobody ever accepts the connection.
    Vanished,
    Tls(TlsAcceptor),
    Rude(Rude),
    /// So many requests meet the deed, the others are served.
    Http2(TlsAcceptor, Deed, u64),
}

struct Case {
    kind: &'static str,
    place: &'static str,
    expected: &'static str,
    host: Host,
}

fn cases(ours: &Authority) -> Vec<Case> {
    let theirs = authority("theirs");
    let years = [2020, 2090];
    let good = |index: usize| tls_for(Some(ours), &name(index), years);
    let tls = "host_unavailable, tls, 0 charged";
    let connect = "host_unavailable, connect, 0 charged";
    let case = |kind, place, expected, host| Case { kind, place, expected, host };
    let (done, always) = ("done, 0 charged", u64::MAX);
    let bad = |kind, host| case(kind, "handshake", tls, host);
    vec![
        case("a good certificate", "handshake", done, Host::Tls(good(0))),
        bad("expired", Host::Tls(tls_for(Some(ours), &name(1), [2020, 2021]))),
        bad("not valid yet", Host::Tls(tls_for(Some(ours), &name(2), [2089, 2090]))),
        bad("for another host", Host::Tls(tls_for(Some(ours), "other.example", years))),
        bad("signed by itself", Host::Tls(tls_for(None, &name(4), years))),
        bad("of an unknown authority", Host::Tls(tls_for(Some(&theirs), &name(5), years))),
        bad("TLS 1.1 only", Host::Rude(Rude::OldTls)),
        bad("a handshake that stalls", Host::Rude(Rude::Stall)),
        bad("a handshake that is hung up on", Host::Rude(Rude::HangUp)),
        bad("plain HTTP instead", Host::Rude(Rude::Plain)),
        case(
            "RST_STREAM, once",
            "before headers",
            done,
            Host::Http2(good(10), Deed::ResetBefore, 1),
        ),
        case(
            "RST_STREAM, always",
            "before headers",
            connect,
            Host::Http2(good(11), Deed::ResetBefore, always),
        ),
        case(
            "RST_STREAM, always",
            "mid body",
            "attempts_exhausted, incomplete, 5 charged",
            Host::Http2(good(12), Deed::ResetWithin, always),
        ),
        case(
            "RST_STREAM, once",
            "mid body",
            "done, 1 charged",
            Host::Http2(good(13), Deed::ResetWithin, 1),
        ),
        case(
            "RST_STREAM, once",
            "last block",
            "done, 1 charged",
            Host::Http2(good(14), Deed::ResetLast, 1),
        ),
        case("GOAWAY, once", "before headers", done, Host::Http2(good(15), Deed::GoAway, 1)),
        case(
            "GOAWAY, always",
            "before headers",
            connect,
            Host::Http2(good(16), Deed::GoAway, always),
        ),
        case(
            "GOAWAY, once",
            "mid body",
            "done, 1 charged",
            Host::Http2(good(17), Deed::GoAwayWithin, 1),
        ),
        case("connects that vanish, always", "connect", connect, Host::Vanished),
    ]
}

/// How many cases there are; [`cases`] makes their certificates.
pub const CASES: usize = 19;

/// The name that the account's document has.
fn name(index: usize) -> String {
    format!("pds{index}.example")
}

pub fn run(bench: &Bench, bound_seconds: u64) -> Vec<Line> {
    let ours = authority("ours");
    let cases = cases(&ours);
    assert_eq!((cases.len(), bench.network.world().len()), (CASES, CASES));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let met: Vec<Arc<AtomicU64>> = cases.iter().map(|_| Arc::default()).collect();
    let mut lines = Vec::new();
    for (index, case) in cases.into_iter().enumerate() {
        let car = Bytes::from(bench.network.world().account(index).car());
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let is_vanished = matches!(case.host, Host::Vanished);
        let address = if is_vanished { black_hole() } else { listener.local_addr().unwrap() };
        let port = address.port();
        let endpoint = Fault::Endpoint(format!("https://{}:{port}", name(index)));
        let target = Target::Did(bench.did(index));
        bench.network.faults().script(Place::Directory, target, [endpoint], Then::Repeat);
        runtime.spawn(serve(listener, Arc::new(case.host), car, Arc::clone(&met[index])));
        lines.push((case.kind, case.place, case.expected));
    }
    run_inside(bench, vec![ours.der.clone()], bound_seconds);
    runtime.shutdown_background();
    let ends = bench.ends();
    let vanished = detail(bench, CASES - 1);
    assert!(vanished.contains("connect: not done in 5 s"), "{vanished}");
    let line = |(index, (kind, place, expected)): (usize, (&str, &str, &str))| {
        let is_met = place == "connect" || met[index].load(Ordering::SeqCst) > 0;
        assert!(is_met, "{kind}, {place}: never met");
        Line::new(kind, place, expected, ends[&bench.did(index)].clone(), bound_seconds)
    };
    let lines = lines.into_iter().enumerate().map(line).collect();
    bench.heal_and_finish(0);
    lines
}

/// The evidence that the ledger keeps.
fn detail(bench: &Bench, index: usize) -> String {
    let ledger = rusqlite::Connection::open(bench.data().join("state.db")).unwrap();
    let select = "SELECT json_extract(rules, '$.detail') FROM accounts WHERE did = ?1";
    ledger.query_row(select, [bench.did(index)], |row| row.get(0)).unwrap()
}

async fn serve(listener: TcpListener, host: Arc<Host>, car: Bytes, met: Arc<AtomicU64>) {
    while let Ok((socket, _)) = listener.accept().await {
        let (host, car, met) = (Arc::clone(&host), car.clone(), Arc::clone(&met));
        tokio::spawn(async move {
            match &*host {
                // Its document names another port.
                Host::Vanished => {}
                Host::Rude(rude) => {
                    met.fetch_add(1, Ordering::SeqCst);
                    rudely(socket, *rude).await;
                }
                Host::Tls(tls) => {
                    // Bad certificates count as met when the client has answered them.
                    let accepted = tls.accept(socket).await;
                    met.fetch_add(1, Ordering::SeqCst);
                    if let Ok(stream) = accepted {
                        converse(stream, (Deed::Serve, 0), car, &met).await;
                    }
                }
                Host::Http2(tls, deed, times) => {
                    if let Ok(stream) = tls.accept(socket).await {
                        converse(stream, (*deed, *times), car, &met).await;
                    }
                }
            }
        });
    }
}

async fn rudely(mut socket: TcpStream, rude: Rude) {
    let _hello = socket.read(&mut [0; 4_096]).await;
    let words: &[u8] = match rude {
        Rude::OldTls => &[21, 3, 2, 0, 2, 2, 70],
        Rude::Plain => b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        Rude::HangUp => b"",
        Rude::Stall => {
            let _hung_up = socket.read(&mut [0; 4_096]).await;
            return;
        }
    };
    let _sent = socket.write_all(words).await;
}

/// Serves one connection; the first so many requests of the case meet the deed.
async fn converse(
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    (deed, times): (Deed, u64),
    car: Bytes,
    met: &AtomicU64,
) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((_request, respond))) = connection.accept().await {
        let is_met = met.load(Ordering::SeqCst) < times;
        if is_met {
            met.fetch_add(1, Ordering::SeqCst);
        }
        let deed = if is_met { deed } else { Deed::Serve };
        if deed == Deed::GoAway {
            connection.abrupt_shutdown(h2::Reason::INTERNAL_ERROR);
            continue;
        }
        let answering = answer(respond, deed, car.clone());
        if deed == Deed::GoAwayWithin {
            // The half body leaves this connection before it ends.
            let mut answering = std::pin::pin!(answering);
            let mut is_sent = false;
            std::future::poll_fn(|context| {
                if !is_sent && answering.as_mut().poll(context).is_ready() {
                    is_sent = true;
                }
                match connection.poll_closed(context) {
                    std::task::Poll::Pending if is_sent => std::task::Poll::Ready(()),
                    std::task::Poll::Pending => std::task::Poll::Pending,
                    std::task::Poll::Ready(_) => std::task::Poll::Ready(()),
                }
            })
            .await;
            connection.abrupt_shutdown(h2::Reason::INTERNAL_ERROR);
            continue;
        }
        tokio::spawn(answering);
    }
}

/// Sends as much of the CAR as the deed lets through, then does it.
async fn answer(mut respond: h2::server::SendResponse<Bytes>, deed: Deed, car: Bytes) {
    if deed == Deed::ResetBefore {
        respond.send_reset(h2::Reason::REFUSED_STREAM);
        return;
    }
    let head = http::Response::builder().header("content-type", "application/vnd.ipld.car");
    let Ok(mut body) = respond.send_response(head.body(()).unwrap(), false) else { return };
    let sent = match deed {
        Deed::ResetWithin | Deed::GoAwayWithin => car.len() / 2,
        Deed::ResetLast => car.len() - 8,
        _ => car.len(),
    };
    let mut rest = car.slice(..sent);
    while !rest.is_empty() {
        body.reserve_capacity(rest.len());
        let Some(Ok(room)) = std::future::poll_fn(|context| body.poll_capacity(context)).await
        else {
            return;
        };
        let piece = rest.split_to(room.min(rest.len()));
        let is_last = rest.is_empty() && sent == car.len();
        if body.send_data(piece, is_last).is_err() {
            return;
        }
    }
    match deed {
        Deed::ResetWithin | Deed::ResetLast => {
            // A reset takes what still waits here with it.
            tokio::time::sleep(Duration::from_millis(300)).await;
            body.send_reset(h2::Reason::CANCEL);
        }
        // The stream stays open until the connection ends.
        Deed::GoAwayWithin => std::mem::forget(body),
        _ => {}
    }
}
