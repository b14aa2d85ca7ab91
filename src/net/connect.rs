//! Connections: TLS settings, and a limit for each step on the way to one.
//!
//! ```text
//!  resolving (net::dns has its own limit) ─> connecting, 5 s ─> handshaking, 5 s ─> connected
//! ```
//!
//! reqwest knows one limit for all of it and cannot say which step it was. So a layer around its connector watches the steps:
//! the resolver tells when names are looked up, and the session store, which rustls asks at the start of every handshake,
//! tells when that begins. Should it ever not tell, the handshake counts as connecting and still ends.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, NamedGroup, RootCertStore};
use tokio::sync::Notify;
use tower_layer::Layer;
use tower_service::Service;

use crate::net::error::{NetError, innermost, told};
use crate::store::error::{has_descriptor, wants_descriptor};

/// Longest TCP connect (PROTOCOL section 4).
const CONNECT_SECONDS: u64 = 5;

/// Longest TLS handshake (PROTOCOL section 4).
const HANDSHAKE_SECONDS: u64 = 5;

/// Longest lookup before a connect. The resolver has its own limit of 5 s; this one only backs it up.
const RESOLVE_SECONDS: u64 = 10;

/// TLS sessions kept for resumption: the hosts in use at one time.
const SESSIONS: usize = 512;

type BoxError = Box<dyn Error + Send + Sync>;

tokio::task_local! {
    /// How far the connection is that this future makes.
    static PROGRESS: Arc<Progress>;
}

/// A step on the way to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Connecting,
    Resolving,
    Handshaking,
}

/// How far one connection is.
#[derive(Debug, Default)]
pub struct Progress {
    step: AtomicU8,
    advanced: Notify,
}

impl Progress {
    /// The name is being looked up.
    pub fn resolving() {
        Self::advance(Step::Resolving);
    }

    /// The address is known.
    pub fn connecting() {
        Self::advance(Step::Connecting);
    }

    fn handshaking() {
        Self::advance(Step::Handshaking);
    }

    /// Outside of a connection attempt there is nobody to tell.
    fn advance(step: Step) {
        let _unwatched = PROGRESS.try_with(|progress| {
            progress.step.store(step as u8, Ordering::Release);
            progress.advanced.notify_one();
        });
    }

    fn step(&self) -> Step {
        match self.step.load(Ordering::Acquire) {
            step if step == Step::Resolving as u8 => Step::Resolving,
            step if step == Step::Handshaking as u8 => Step::Handshaking,
            _ => Step::Connecting,
        }
    }
}

impl Step {
    fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Resolving => RESOLVE_SECONDS,
            Self::Connecting => CONNECT_SECONDS,
            Self::Handshaking => HANDSHAKE_SECONDS,
        })
    }
}

/// A connection that did not come about: at which step, and why.
#[derive(Debug)]
pub struct ConnectFault {
    step: Step,
    text: String,
    /// It was ours: there was no descriptor for it.
    is_ours: bool,
}

impl ConnectFault {
    fn timed_out(step: Step) -> Self {
        let text = format!("not done in {} s", step.limit().as_secs());
        Self { step, text, is_ours: false }
    }

    /// The request's error, for a request to `host`.
    #[must_use]
    pub fn at(&self, host: &str) -> NetError {
        match self.step {
            _ if self.is_ours => NetError::NoDescriptor(told(host, self)),
            Step::Resolving => NetError::Dns(told(host, self)),
            Step::Connecting => NetError::Connect(told(host, self)),
            Step::Handshaking => NetError::Tls(told(host, self)),
        }
    }
}

impl fmt::Display for ConnectFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match self.step {
            Step::Resolving => "lookup",
            Step::Connecting => "connect",
            Step::Handshaking => "tls handshake",
        };
        write!(f, "{step}: {}", self.text)
    }
}

impl Error for ConnectFault {}

/// Puts the limits around a connector.
#[derive(Clone, Copy, Debug)]
pub struct StepLimits;

impl<S> Layer<S> for StepLimits {
    type Service = Limited<S>;

    fn layer(&self, connector: S) -> Limited<S> {
        Limited(connector)
    }
}

/// A connector whose steps are limited.
#[derive(Clone, Debug)]
pub struct Limited<S>(S);

impl<S, R> Service<R> for Limited<S>
where
    S: Service<R, Error = BoxError>,
    S::Future: Send + 'static,
    S::Response: 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, target: R) -> Self::Future {
        Box::pin(limited(self.0.call(target)))
    }
}

/// Waits for `connecting`, at most each step's limit a step.
async fn limited<T>(connecting: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
    let progress = Arc::new(Progress::default());
    let mut connecting = pin!(PROGRESS.scope(Arc::clone(&progress), connecting));
    loop {
        let step = progress.step();
        tokio::select! {
            biased;
            connected = &mut connecting => {
                return connected.map_err(|error| sorted(progress.step(), error));
            }
            () = progress.advanced.notified() => {}
            () = tokio::time::sleep(step.limit()) => {
                return Err(ConnectFault::timed_out(step).into());
            }
        }
    }
}

/// Keeps what the resolver said, names the step of everything else.
fn sorted(step: Step, error: BoxError) -> BoxError {
    if step == Step::Resolving {
        return error;
    }
    let is_ours = !has_descriptor() || lacked_descriptor(error.as_ref());
    ConnectFault { step, text: innermost(error.as_ref()), is_ours }.into()
}

/// Whether the system said so, somewhere among the sources.
fn lacked_descriptor(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(at) = next {
        if at.downcast_ref::<std::io::Error>().is_some_and(wants_descriptor) {
            return true;
        }
        next = at.source();
    }
    false
}

/// Sessions for resumption; asked at the start of every handshake, which is why it can tell.
#[derive(Debug)]
struct Sessions(ClientSessionMemoryCache);

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(server_name, group);
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        Progress::handshaking();
        self.0.kx_hint(server_name)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(name, value);
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(server_name)
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        self.0.remove_tls12_session(server_name);
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(name, value);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        Progress::handshaking();
        self.0.take_tls13_ticket(name)
    }
}

/// The certificate authorities that this system trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured). Without any, https
/// fails at every host, which is warned of: plain http to allowed addresses still works.
#[must_use]
pub fn system_roots() -> Vec<CertificateDer<'static>> {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors.iter().take(1) {
        tracing::warn!(%error, "some certificate authorities could not be read");
    }
    if found.certs.is_empty() {
        tracing::warn!("no certificate authorities were found, https will fail");
    }
    found.certs
}

/// TLS 1.2 and 1.3 with ring, trusting `roots`. Nothing process-wide is installed.
///
/// # Errors
/// [`NetError::Tls`] if rustls refuses its own defaults.
pub fn tls_config(roots: Vec<CertificateDer<'static>>) -> Result<ClientConfig, NetError> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| NetError::Tls(told("tls", error)))?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.resumption =
        Resumption::store(Arc::new(Sessions(ClientSessionMemoryCache::new(SESSIONS))));
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::clock::Clock;

    fn fault(error: BoxError) -> NetError {
        error.downcast::<ConnectFault>().expect("another error").at("h")
    }

    #[tokio::test(start_paused = true)]
    async fn each_step_has_its_own_limit_and_its_own_word() {
        let clock = Clock::system();
        let began = clock.now();
        let error = limited(pending::<Result<(), BoxError>>()).await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), 5);
        assert_eq!(fault(error), NetError::Connect("h: connect: not done in 5 s".into()));

        let began = clock.now();
        let handshake = async {
            Progress::resolving();
            tokio::time::sleep(Duration::from_secs(4)).await;
            Progress::connecting();
            tokio::time::sleep(Duration::from_secs(4)).await;
            Progress::handshaking();
            pending::<Result<(), BoxError>>().await
        };
        let error = limited(handshake).await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), 13);
        assert!(matches!(fault(error), NetError::Tls(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn errors_carry_the_step_and_the_resolvers_words_are_kept() {
        let refused = async { Err::<(), BoxError>(std::io::Error::other("refused").into()) };
        let error = limited(refused).await.unwrap_err();
        assert_eq!(fault(error), NetError::Connect("h: connect: refused".into()));
        let unknown = async {
            Progress::resolving();
            Err::<(), BoxError>(NetError::Dns("n: unknown".into()).into())
        };
        let error = limited(unknown).await.unwrap_err();
        assert_eq!(error.to_string(), "n: unknown");
        assert_eq!(limited(async { Ok(7) }).await.unwrap(), 7);
    }

    #[test]
    fn outside_of_a_connection_nobody_is_told() {
        Progress::resolving();
        Progress::handshaking();
        assert!(tls_config(Vec::new()).is_ok());
    }
}
