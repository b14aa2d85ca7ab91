//! A real Kafka broker (KRaft, one node) on loopback, and the console tools that come with it: started, killed with SIGKILL,
//! and started again on the same data and port. `tests/run` brings its jars with Maven.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::proc::{Finished, Running, Skyfill};

/// How long the broker or one of its tools may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// Between two looks whether the broker listens.
const LOOK: Duration = Duration::from_millis(50);

/// The console consumer ends when nothing has come for this long, milliseconds: it cannot be told to end at the end.
const QUIET_MILLISECONDS: &str = "4000";

/// Where `tests/run` puts the jars; `None` where it has not, and that is said.
pub fn jars() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/kafka");
    if !folder.exists() {
        println!("no Kafka here (tests/run installs it): left out");
        return None;
    }
    Some(folder)
}

/// One broker; ends with this.
pub struct Kafka {
    folder: tempfile::TempDir,
    jars: PathBuf,
    port: u16,
    sasl_port: u16,
    running: Mutex<Option<Running>>,
}

/// A message as Kafka's own console consumer prints it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Printed {
    pub headers: String,
    pub key: String,
    pub value: String,
}

impl Kafka {
    /// A fresh broker, or `None` where there are no jars; `more` are lines for its properties.
    pub fn start(more: &[&str]) -> Option<Self> {
        let (jars, folder) = (jars()?, tempfile::tempdir().unwrap());
        let [port, sasl_port, controller] = free_ports();
        let mut lines: BTreeMap<&str, String> = BTreeMap::new();
        for line in PROPERTIES.iter().chain(more) {
            let (key, value) = line.split_once('=').unwrap();
            let value = value.replace("PLAIN_PORT", &port.to_string());
            let value = value.replace("SASL_PORT", &sasl_port.to_string());
            lines.insert(key, value.replace("CONTROLLER_PORT", &controller.to_string()));
        }
        lines.insert("log.dirs", folder.path().join("data").display().to_string());
        let text: Vec<String> =
            lines.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        std::fs::write(folder.path().join("server.properties"), text.concat()).unwrap();
        let kafka = Self { folder, jars, port, sasl_port, running: Mutex::new(None) };
        let properties = kafka.properties();
        let format = ["kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c"];
        kafka.java(&[&format[..], &[&properties]].concat()).expect_code(0);
        kafka.begin();
        Some(kafka)
    }

    /// Where it listens, killed or not.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where it wants a user `skyfill` with the password `let-me-in`.
    pub fn brokers_with_password(&self) -> String {
        format!("127.0.0.1:{}", self.sasl_port)
    }

    /// SIGKILL, in the middle of whatever it does; gone when this returns.
    pub fn kill(&self) {
        let running = self.running.lock().unwrap().take().expect("it runs");
        let killed = running.kill_and_wait();
        assert_eq!(killed.signal, Some(9), "{}", killed.stderr);
    }

    /// On the same data and port again; listens when this returns.
    pub fn begin(&self) {
        let running = self.command().spawn(&self.arguments(&["kafka.Kafka", &self.properties()]));
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            assert!(running.wait(LOOK).is_none(), "{}", running.stderr());
            assert!(begun.elapsed() < PATIENCE, "it does not listen: {}", running.stderr());
        }
        *self.running.lock().unwrap() = Some(running);
    }

    /// Runs one of Kafka's own tools (a class name and its arguments), told where the broker is.
    pub fn tool(&self, class: &str, arguments: &[&str]) -> Finished {
        let brokers = self.brokers();
        let head = [class, "--bootstrap-server", brokers.as_str()];
        self.java(&[&head[..], arguments].concat())
    }

    /// Makes a topic with Kafka's own tool; `config` are settings `key=value`.
    pub fn make_topic(&self, topic: &str, partitions: u32, config: &[&str]) {
        let partitions = partitions.to_string();
        let mut arguments = vec!["--create", "--topic", topic, "--partitions", &partitions];
        arguments.extend(config.iter().flat_map(|it| ["--config", it]));
        self.tool(TOPICS, &arguments).expect_code(0);
    }

    /// Does what an error message says: `kafka-configs.sh ...` or `kafka-topics.sh ...`, as far as the command goes.
    pub fn obey(&self, message: &str) {
        let (class, rest) = [("kafka-configs.sh ", CONFIGS), ("kafka-topics.sh ", TOPICS)]
            .into_iter()
            .find_map(|(script, class)| Some((class, message.rsplit_once(script)?.1)))
            .unwrap_or_else(|| panic!("it names no command: {message}"));
        // In a line of the log the message stands in quotes.
        let line = rest.lines().next().unwrap().trim_end_matches('"');
        let words = line.split(" (").next().unwrap().split_whitespace();
        let words: Vec<&str> = words.collect();
        assert_eq!(words[1], self.brokers(), "{message}");
        self.java(&[&[class], &words[..]].concat()).expect_code(0);
    }

    /// Every committed message of a topic, as Kafka's own console consumer prints them, sorted.
    pub fn console(&self, topic: &str) -> Vec<Printed> {
        let mut arguments =
            vec!["--topic", topic, "--from-beginning", "--timeout-ms", QUIET_MILLISECONDS];
        arguments.extend(["--isolation-level", "read_committed"]);
        for property in ["print.headers=true", "print.key=true"] {
            arguments.extend(["--formatter-property", property]);
        }
        let finished = self.tool("org.apache.kafka.tools.consumer.ConsoleConsumer", &arguments);
        let mut printed = Vec::new();
        for line in finished.stdout.lines() {
            let mut parts = line.splitn(3, '\t').map(str::to_owned);
            let mut part = || parts.next().unwrap_or_else(|| panic!("{line}"));
            let (headers, key, value) = (part(), part(), part());
            printed.push(Printed { headers, key, value });
        }
        let count = format!("Processed a total of {} messages", printed.len());
        assert!(finished.stderr.contains(&count), "{count}: {}", finished.stderr);
        printed.sort();
        printed
    }

    fn properties(&self) -> String {
        self.folder.path().join("server.properties").display().to_string()
    }

    fn command(&self) -> Skyfill {
        Skyfill::new("java")
    }

    fn arguments(&self, rest: &[&str]) -> Vec<String> {
        let jars = format!("{}/*", self.jars.display());
        let head =
            ["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", jars.as_str()];
        head.iter().chain(rest).map(|it| (*it).to_owned()).collect()
    }

    fn java(&self, rest: &[&str]) -> Finished {
        self.command().run(&self.arguments(rest), PATIENCE)
    }
}

const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";
const CONFIGS: &str = "kafka.admin.ConfigCommand";

/// One node that is broker and controller, small, and quick to begin.
const PROPERTIES: &[&str] = &[
    "process.roles=broker,controller",
    "node.id=1",
    "listeners=PLAINTEXT://127.0.0.1:PLAIN_PORT,SASL_PLAINTEXT://127.0.0.1:SASL_PORT,CONTROLLER://127.0.0.1:CONTROLLER_PORT",
    "advertised.listeners=PLAINTEXT://127.0.0.1:PLAIN_PORT,SASL_PLAINTEXT://127.0.0.1:SASL_PORT",
    "sasl.enabled.mechanisms=PLAIN",
    "listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_skyfill=\"let-me-in\";",
    "controller.listener.names=CONTROLLER",
    "controller.quorum.voters=1@127.0.0.1:CONTROLLER_PORT",
    "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
    "offsets.topic.replication.factor=1",
    "offsets.topic.num.partitions=1",
    "transaction.state.log.replication.factor=1",
    "transaction.state.log.min.isr=1",
    "transaction.state.log.num.partitions=1",
    "group.initial.rebalance.delay.ms=0",
    "auto.create.topics.enable=false",
    "log.cleaner.dedupe.buffer.size=8388608",
];

/// Below those that the system gives to whoever asks for any: a broker that is started again finds its own free.
fn free_ports() -> [u16; 3] {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let mine = std::process::id().wrapping_mul(101);
    [(); 3].map(|()| {
        loop {
            let number = mine.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
            let port = 12_000 + u16::try_from(number % 20_000).unwrap();
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return port;
            }
        }
    })
}
