//! Clients of a cluster: how they are set up, what they hear from it, and what their errors mean to whoever follows.
//!
//! ```text
//!  nobody answers, a leader is away, a timeout        busy: asked again a second later, for ever
//!  credentials, rights                                permission: the run ends by name
//!  what the cluster will never take                   configuration: the run ends with the command that mends it
//!  another process has our transactional id           the run ends: two would write one data directory's rows
//! ```
//! librdkafka is built without OpenSSL, so without TLS: either plain text, or SASL/PLAIN on a network that is trusted.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::admin::AdminClient;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, ProducerContext};
use rdkafka::{ClientContext, Message};

use crate::config::broker::Broker;
use crate::domain::did::cleaned;
use crate::limits::{KAFKA_MESSAGE_BYTES_MIN, KAFKA_QUEUE_KIB, KAFKA_QUEUE_MESSAGES};
use crate::sink::StoreError;

/// Within this every question is answered, or the sink waits and asks again: short, so that a stop does not wait for long.
pub const ANSWER: Duration = Duration::from_secs(10);

/// A transaction that its producer does not end is aborted by the cluster after this long; readers wait for it till then.
pub const TRANSACTION: Duration = Duration::from_secs(120);

/// The same of a partition's lane, whose transactions hold whole accounts: the most that a cluster allows unless it is told
/// otherwise (`transaction.max.timeout.ms`), enough for 4 GiB at 5 MB/s.
pub const TRANSACTION_OF_PARTITION: Duration = Duration::from_secs(900);

/// Names of the credentials in a file; in the environment in capitals, after `KAFKA_`.
const CREDENTIALS: [&str; 2] = ["username", "password"];

/// What a client has heard from the cluster, apart from answers.
#[derive(Default)]
pub struct Heard {
    last: Mutex<Option<(Option<RDKafkaErrorCode>, String)>>,
}

impl Heard {
    fn hear(&self, code: Option<RDKafkaErrorCode>, text: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // A refusal is not drowned by what follows from it, as that no broker is left.
        let is_denied =
            |code: Option<RDKafkaErrorCode>| code.is_some_and(|it| DENIED.contains(&it));
        if !last.as_ref().is_some_and(|(code, _)| is_denied(*code)) {
            *last = Some((code, cleaned(text)));
        }
    }

    /// The last trouble, and forgets it.
    fn take(&self) -> Option<(Option<RDKafkaErrorCode>, String)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ClientContext for Heard {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, text = %cleaned(message), "librdkafka says");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, text = %cleaned(reason), "librdkafka reports trouble");
        self.hear(error.rdkafka_error_code(), reason);
    }
}

impl ProducerContext for Heard {
    type DeliveryOpaque = ();

    fn delivery(&self, delivered: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = delivered {
            let code = error.rdkafka_error_code();
            // What was purged with an abandoned transaction is no trouble of its own.
            let is_purged = matches!(
                code,
                Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)
            );
            if !is_purged {
                self.hear(code, &format!("{}: {error}", message.topic()));
            }
        }
    }
}

impl ConsumerContext for Heard {}

/// A producer with what it has heard.
pub type Producer = BaseProducer<Heard>;

/// A consumer with what it has heard.
pub type Consumer = BaseConsumer<Heard>;

/// Events of a client that are looked at for trouble after a question went wrong.
const EVENTS_MAX: usize = 64;

/// Lets `consumer` hear what the cluster has said beside its answers; gives its ear.
#[must_use]
pub fn heard_by(consumer: &Consumer) -> &Heard {
    for _ in 0..EVENTS_MAX {
        // An error that comes out here was heard on its way; lines of the log come between them.
        let _heard = consumer.poll(Duration::ZERO);
    }
    consumer.context()
}

/// Makes clients of one cluster.
#[derive(Clone, Debug)]
pub struct Clients {
    /// The cluster.
    pub broker: Broker,
    /// Whether what is sent is compressed.
    pub zstd: bool,
}

impl Clients {
    /// A producer for the transactions of `id`, which may take as long as `transaction`.
    ///
    /// # Errors
    /// [`StoreError::Config`], or that of a file of credentials.
    pub fn producer(&self, id: &str, transaction: Duration) -> Result<Producer, StoreError> {
        let mut config = self.config()?;
        config
            .set("transactional.id", id)
            .set("transaction.timeout.ms", transaction.as_millis().to_string())
            .set("message.timeout.ms", TRANSACTION.as_millis().to_string())
            .set("queue.buffering.max.kbytes", KAFKA_QUEUE_KIB.to_string())
            .set("queue.buffering.max.messages", KAFKA_QUEUE_MESSAGES.to_string())
            .set("message.max.bytes", KAFKA_MESSAGE_BYTES_MIN.to_string())
            .set("compression.codec", if self.zstd { "zstd" } else { "none" })
            // As every other client does it, so that theirs and ours put a key into the same partition.
            .set("partitioner", "murmur2_random");
        made(&config)
    }

    /// A consumer of the group `group` that reads what is committed, and commits nothing by itself.
    ///
    /// # Errors
    /// As [`Clients::producer`].
    pub fn consumer(&self, group: &str) -> Result<Consumer, StoreError> {
        let mut config = self.config()?;
        config
            .set("group.id", group)
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("allow.auto.create.topics", "false")
            .set("enable.partition.eof", "true")
            .set("queued.max.messages.kbytes", "8192")
            .set("fetch.message.max.bytes", "1048576");
        made(&config)
    }

    /// A consumer that also sees what is not committed: for where a partition ends.
    ///
    /// # Errors
    /// As [`Clients::producer`].
    pub fn uncommitted(&self, group: &str) -> Result<Consumer, StoreError> {
        let mut config = self.config()?;
        config.set("group.id", group).set("isolation.level", "read_uncommitted");
        made(&config)
    }

    /// A client that looks at topics and makes them.
    ///
    /// # Errors
    /// As [`Clients::producer`].
    pub fn admin(&self) -> Result<AdminClient<Heard>, StoreError> {
        made(&self.config()?)
    }

    /// What every client of the cluster is set up with.
    pub(super) fn config(&self) -> Result<ClientConfig, StoreError> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.broker.brokers)
            .set("client.id", "skyfill")
            .set("socket.keepalive.enable", "true")
            .set("socket.connection.setup.timeout.ms", "5000")
            .set("reconnect.backoff.max.ms", "2000")
            .set("log.connection.close", "false");
        if let Some([username, password]) = credentials(self.broker.credentials.as_deref())? {
            config
                .set("security.protocol", "sasl_plaintext")
                .set("sasl.mechanism", "PLAIN")
                .set("sasl.username", username)
                .set("sasl.password", password);
        }
        Ok(config)
    }

    /// What the caller of a sink has to know of an error: wait, or end by name. `heard` is of the client that it came from.
    #[must_use]
    pub fn sorted(&self, doing: &str, error: &KafkaError, heard: Option<&Heard>) -> StoreError {
        let last = heard.and_then(Heard::take);
        let (heard_code, more) = match last {
            Some((code, text)) if !error.to_string().contains(&text) => {
                (code, format!(" ({text})"))
            }
            Some((code, _)) => (code, String::new()),
            None => (None, String::new()),
        };
        let text = format!("{}: {doing}: {}{more}", self.broker.brokers, worded(error));
        let codes = [code_of(error), heard_code];
        let is = |wanted: &[RDKafkaErrorCode]| codes.iter().flatten().any(|it| wanted.contains(it));
        match () {
            () if is(&DENIED) => {
                StoreError::Permission(format!("{text}: the credentials do not allow it"))
            }
            () if is(&TOO_LARGE) => StoreError::Config(format!(
                "{text}: raise max.message.bytes of the topic to {KAFKA_MESSAGE_BYTES_MIN} (skyfill check names the command)"
            )),
            () if is(&[RDKafkaErrorCode::InvalidTransactionTimeout]) => {
                StoreError::Config(format!(
                    "{text}: the cluster allows shorter transactions only, set its transaction.max.timeout.ms to at least {}",
                    TRANSACTION_OF_PARTITION.as_millis()
                ))
            }
            () => StoreError::busy(text),
        }
    }
}

/// The credentials have no right, or are none.
const DENIED: [RDKafkaErrorCode; 6] = [
    RDKafkaErrorCode::Authentication,
    RDKafkaErrorCode::SaslAuthenticationFailed,
    RDKafkaErrorCode::TopicAuthorizationFailed,
    RDKafkaErrorCode::GroupAuthorizationFailed,
    RDKafkaErrorCode::ClusterAuthorizationFailed,
    RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
];

/// A message is larger than its topic takes.
const TOO_LARGE: [RDKafkaErrorCode; 3] = [
    RDKafkaErrorCode::MessageSizeTooLarge,
    RDKafkaErrorCode::InvalidMessageSize,
    RDKafkaErrorCode::MessageBatchTooLarge,
];

/// Somebody else began transactions under our id.
const FENCED: [RDKafkaErrorCode; 3] = [
    RDKafkaErrorCode::Fenced,
    RDKafkaErrorCode::ProducerFenced,
    RDKafkaErrorCode::InvalidProducerEpoch,
];

/// Whether somebody else, or the end of the transaction's time, has taken our transactional id away.
#[must_use]
pub fn is_fenced(error: &KafkaError) -> bool {
    code_of(error).is_some_and(|code| FENCED.contains(&code))
}

fn code_of(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::Transaction(error) => Some(error.code()),
        KafkaError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    }
}

/// A timeout by its name, everything else by librdkafka's words.
fn worded(error: &KafkaError) -> String {
    let code = code_of(error);
    let silence = [
        RDKafkaErrorCode::OperationTimedOut,
        RDKafkaErrorCode::MessageTimedOut,
        RDKafkaErrorCode::BrokerTransportFailure,
        RDKafkaErrorCode::AllBrokersDown,
    ];
    match code {
        Some(code) if silence.contains(&code) => "no answer".to_owned(),
        _ => match error {
            KafkaError::Transaction(error) => cleaned(&error.string()),
            error => cleaned(&error.to_string()),
        },
    }
}

fn made<T: FromClientConfigAndContext<Heard>>(config: &ClientConfig) -> Result<T, StoreError> {
    T::from_config_and_context(config, Heard::default())
        .map_err(|error| StoreError::Config(format!("the Kafka client: {error}")))
}

/// User and password; `None` without any.
fn credentials(file: Option<&Path>) -> Result<Option<[String; 2]>, StoreError> {
    let Some(path) = file else {
        let of = |name: &str| std::env::var(format!("KAFKA_{}", name.to_uppercase())).ok();
        let [username, password] = CREDENTIALS.map(of);
        return Ok(username.zip(password).map(<[String; 2]>::from));
    };
    let text = std::fs::read_to_string(path).map_err(|error| StoreError::io(path, error))?;
    let of = |name: &str| {
        let mut pairs = text.lines().filter_map(|line| line.split_once('='));
        let found = pairs.find(|(key, _)| key.trim().eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().trim_matches('"').to_owned())
    };
    match CREDENTIALS.map(of) {
        [Some(username), Some(password)] if !username.is_empty() => Ok(Some([username, password])),
        _ => Err(StoreError::Config(format!(
            "{}: wants a line username = ... and one password = ...",
            path.display()
        ))),
    }
}
