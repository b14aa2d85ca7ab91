//! Object stores that speak S3; only with the feature `s3`.
//!
//! ```text
//!  draft (scratch folder) ──put, or parts of 8 MiB──> object: visible when it is whole
//!  manifest ──put, only if there is none of its number──> the commit
//! ```
//! A store that is away, slow or overloaded is waited for; one that refuses the credentials, or has no such bucket, ends the run
//! by name. An upload that a kill has cut off is never an object; the store keeps its parts until a lifecycle rule of the
//! bucket removes them (`AbortIncompleteMultipartUpload`), because nothing here can see them.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::client::{HttpClient, HttpConnector};
use object_store::multipart::MultipartStore;
use object_store::{
    BackoffConfig, ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload,
    RetryConfig,
};
use tokio::runtime::Runtime;

use crate::config::settings::Bucket;
use crate::domain::did::cleaned;
use crate::net::connect::{system_roots, tls_config};
use crate::sink::StoreError;
use crate::sink::files::leftover::{DRAFT_ENDING, Found};
use crate::sink::files::manifest::{file_name, number_of};
use crate::sink::files::shelf::{MANIFESTS, Shelf, stranger};

/// Bytes of a part: all but the last must be equal and at least 5 MiB, and 10,000 of these are more than a file has.
const PART_BYTES: usize = 8 << 20;

/// Connecting takes at most so long,
const CONNECT: Duration = Duration::from_secs(5);

/// and between two reads of an answer, or after a part was sent, so long.
const SILENCE: Duration = Duration::from_secs(20);

/// The store's own failures are asked again once at once; then the sink waits, and says so.
const RETRIES: usize = 1;

/// Without a region anywhere; what only speaks like S3 rarely cares.
const REGION: &str = "us-east-1";

/// Names of the credentials, in the environment in capitals.
const CREDENTIALS: [&str; 3] = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"];

/// How the client words a status that no patience mends.
const REFUSALS: [&str; 2] = ["status code: 401", "status code: 403"];

type Location = object_store::path::Path;

/// A place in an object store.
pub struct Objects {
    bucket: Bucket,
    scratch: PathBuf,
    reach: Option<Reach>,
}

/// The client, and what drives it.
struct Reach {
    store: AmazonS3,
    runtime: Runtime,
}

impl Objects {
    /// A place that nobody has been asked about yet; drafts are written to `scratch`.
    #[must_use]
    pub fn new(bucket: &Bucket, scratch: &Path) -> Self {
        Self { bucket: bucket.clone(), scratch: scratch.to_owned(), reach: None }
    }

    /// Whether it can be reached and read; nothing is written.
    ///
    /// # Errors
    /// [`StoreError::Permission`], [`StoreError::Config`], or [`StoreError::Busy`] if nobody answers.
    pub fn look(&mut self) -> Result<(), StoreError> {
        self.connect()?;
        let prefix = self.location(MANIFESTS)?;
        let Reach { store, runtime } = self.reach()?;
        let listed = runtime.block_on(async { store.list(Some(&prefix)).next().await.transpose() });
        listed.map(drop).map_err(|error| self.sorted(error))
    }

    fn connect(&mut self) -> Result<(), StoreError> {
        if self.reach.is_some() {
            return Ok(());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| StoreError::io(Path::new("runtime"), error))?;
        let store = client(&self.bucket)?;
        self.reach = Some(Reach { store, runtime });
        Ok(())
    }

    fn reach(&self) -> Result<&Reach, StoreError> {
        let missing = || StoreError::sink("the object store was not opened");
        self.reach.as_ref().ok_or_else(missing)
    }

    fn location(&self, path: &str) -> Result<Location, StoreError> {
        let prefix = &self.bucket.prefix;
        let key = if prefix.is_empty() { path.to_owned() } else { format!("{prefix}/{path}") };
        Location::parse(key).map_err(|error| StoreError::Config(error.to_string()))
    }

    fn shown(&self) -> String {
        format!("s3://{}/{}", self.bucket.bucket, self.bucket.prefix)
    }

    /// What the caller of a sink has to know of an error: wait, or end by name.
    fn sorted(&self, error: Error) -> StoreError {
        let text = chain(&error);
        let said = format!("{}: {}", self.shown(), cleaned(&text));
        let is_refused = match error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => true,
            // Errors of lists have no kind of their own, but the answer's status.
            _ => REFUSALS.iter().any(|status| text.contains(status)),
        };
        match () {
            () if is_refused => {
                StoreError::Permission(format!("{said}: the credentials do not allow it"))
            }
            () if text.contains("NoSuchBucket") => StoreError::Config(format!(
                "{}: there is no such bucket: make it first",
                self.shown()
            )),
            () => StoreError::busy(said),
        }
    }

    /// Paths below the place, and the folder `below` it, of every object.
    fn list(&self, below: Option<&str>) -> Result<Vec<String>, StoreError> {
        let prefix = match below {
            Some(below) => Some(self.location(below)?),
            None if self.bucket.prefix.is_empty() => None,
            None => Some(self.location("")?),
        };
        let Reach { store, runtime } = self.reach()?;
        let skipped = match self.bucket.prefix.as_str() {
            "" => 0,
            prefix => prefix.len() + 1,
        };
        let listed = runtime.block_on(async {
            let mut found = Vec::new();
            let mut objects = store.list(prefix.as_ref());
            while let Some(object) = objects.next().await.transpose()? {
                let key = object.location.as_ref();
                found.extend(key.get(skipped..).map(str::to_owned));
            }
            Ok(found)
        });
        listed.map_err(|error| self.sorted(error))
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, StoreError> {
        let location = self.location(path)?;
        let Reach { store, runtime } = self.reach()?;
        let read = runtime.block_on(async { store.get(&location).await?.bytes().await });
        read.map(Into::into).map_err(|error| self.sorted(error))
    }

    /// Sends a file in parts, in order, one in memory at a time.
    async fn send(store: &AmazonS3, file: &File, location: &Location) -> Result<(), Error> {
        let generic =
            |source: std::io::Error| Error::Generic { store: "draft", source: source.into() };
        let bytes = file.metadata().map_err(generic)?.len();
        let part = |offset: u64| {
            let left = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(PART_BYTES);
            let mut part = vec![0; left];
            file.read_exact_at(&mut part, offset).map_err(generic)?;
            Ok::<PutPayload, Error>(PutPayload::from(part))
        };
        if bytes <= PART_BYTES as u64 {
            return store.put(location, part(0)?).await.map(drop);
        }
        let upload = store.create_multipart(location).await?;
        let sending = async {
            let (mut parts, mut offset) = (Vec::new(), 0);
            while offset < bytes {
                let payload = part(offset)?;
                offset += payload.content_length() as u64;
                parts.push(store.put_part(location, &upload, parts.len(), payload).await?);
            }
            store.complete_multipart(location, &upload, parts).await.map(drop)
        };
        let sent = sending.await;
        if sent.is_err() {
            // What cannot be taken back either is left to the bucket's lifecycle.
            let _left = store.abort_multipart(location, &upload).await;
        }
        sent
    }
}

impl Shelf for Objects {
    fn open(&mut self) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        self.connect()?;
        let failed = |path: &Path, error| StoreError::io(path, error);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.scratch);
        made.map_err(|error| failed(&self.scratch, error))?;
        for entry in fs::read_dir(&self.scratch).map_err(|error| failed(&self.scratch, error))? {
            let path = entry.map_err(|error| failed(&self.scratch, error))?.path();
            if path.to_string_lossy().ends_with(DRAFT_ENDING) {
                fs::remove_file(&path).map_err(|error| failed(&path, error))?;
            }
        }
        let names = self.list(Some(MANIFESTS))?;
        let number = |path: &String| number_of(path.rsplit('/').next().unwrap_or(path));
        let Some(number) = names.iter().filter_map(number).max() else { return Ok(None) };
        let bytes = self.read(&format!("{MANIFESTS}/{}", file_name(number)))?;
        Ok(Some((number, bytes)))
    }

    fn clear(&mut self, judge: &dyn Fn(&str) -> Found) -> Result<u64, StoreError> {
        let mut removed = 0;
        for path in self.list(None)? {
            if path.starts_with(MANIFESTS) {
                continue;
            }
            match judge(&path) {
                Found::Kept => {}
                Found::Leftover => {
                    let location = self.location(&path)?;
                    let Reach { store, runtime } = self.reach()?;
                    let gone = runtime.block_on(store.delete(&location));
                    gone.map_err(|error| self.sorted(error))?;
                    removed += 1;
                }
                Found::Stranger => return Err(stranger(&format!("{}/{path}", self.shown()))),
            }
        }
        Ok(removed)
    }

    fn draft(&mut self, _path: &str) -> Result<PathBuf, StoreError> {
        Ok(self.scratch.join(format!(".draft{DRAFT_ENDING}")))
    }

    fn place(&mut self, draft: &Path, path: &str) -> Result<(), StoreError> {
        let location = self.location(path)?;
        let file = File::open(draft).map_err(|error| StoreError::io(draft, error))?;
        let Reach { store, runtime } = self.reach()?;
        let sent = runtime.block_on(Self::send(store, &file, &location));
        sent.map_err(|error| self.sorted(error))?;
        // The space is given back now; what stays after a kill is removed by the next start.
        fs::remove_file(draft).map_err(|error| StoreError::io(draft, error))
    }

    fn commit(&mut self, number: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let path = format!("{MANIFESTS}/{}", file_name(number));
        let location = self.location(&path)?;
        let Reach { store, runtime } = self.reach()?;
        let put = |mode: PutMode| {
            let payload = PutPayload::from(bytes.to_vec());
            runtime.block_on(store.put_opts(&location, payload, mode.into()))
        };
        match put(PutMode::Create) {
            Ok(_) => Ok(()),
            // An answer that was lost: it may be ours.
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                if self.read(&path)? == bytes {
                    return Ok(());
                }
                Err(StoreError::Config(format!(
                    "{}/{path} was written by somebody else: give every sink a place of its own",
                    self.shown()
                )))
            }
            // A store without conditions: one process has this data directory, and its sink this place.
            Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                put(PutMode::Overwrite).map(drop).map_err(|error| self.sorted(error))
            }
            Err(error) => Err(self.sorted(error)),
        }
    }
}

/// Our own client: its TLS provider and roots, no proxy, no redirect.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        let generic = |source: Box<dyn std::error::Error + Send + Sync>| Error::Generic {
            store: "http client",
            source,
        };
        let tls = tls_config(system_roots()).map_err(|error| generic(error.into()))?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .build();
        client.map(HttpClient::new).map_err(|error| generic(error.into()))
    }
}

fn client(bucket: &Bucket) -> Result<AmazonS3, StoreError> {
    let [key, secret, token] = credentials(bucket)?;
    let of_environment =
        || std::env::var("AWS_REGION").or_else(|_| std::env::var("AWS_DEFAULT_REGION"));
    let region = bucket.region.clone().or_else(|| of_environment().ok());
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(100), ..Default::default() };
    let retry = RetryConfig { backoff, max_retries: RETRIES, retry_timeout: SILENCE };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&bucket.bucket)
        .with_region(region.unwrap_or_else(|| REGION.to_owned()))
        .with_access_key_id(key)
        .with_secret_access_key(secret)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(retry)
        .with_http_connector(Connector);
    if !token.is_empty() {
        builder = builder.with_token(token);
    }
    if let Some(endpoint) = &bucket.endpoint {
        let text = endpoint.as_str().trim_end_matches('/');
        builder = builder.with_endpoint(text).with_allow_http(endpoint.scheme() == "http");
    }
    builder.build().map_err(|error| StoreError::Config(cleaned(&chain(&error))))
}

/// Key, secret and token, the last one often empty: from the file that is configured, else from the environment.
fn credentials(bucket: &Bucket) -> Result<[String; 3], StoreError> {
    let found = match &bucket.credentials {
        Some(path) => {
            let text = fs::read_to_string(path).map_err(|error| StoreError::io(path, error))?;
            let of = |name: &str| {
                let mut pairs = text.lines().filter_map(|line| line.split_once('='));
                pairs
                    .find(|(key, _)| key.trim().eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.trim().trim_matches('"').to_owned())
            };
            CREDENTIALS.map(|name| of(name).unwrap_or_default())
        }
        None => CREDENTIALS.map(|name| std::env::var(name.to_uppercase()).unwrap_or_default()),
    };
    if found[..2].iter().any(String::is_empty) {
        let text = match &bucket.credentials {
            Some(path) => format!(
                "{}: wants a line aws_access_key_id = ... and one aws_secret_access_key = ...",
                path.display()
            ),
            None => "an object store wants AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or a file of \
                     credentials"
                .to_owned(),
        };
        return Err(StoreError::Config(text));
    }
    Ok(found)
}

/// An error with everything below it, each text once.
fn chain(error: &dyn std::error::Error) -> String {
    let (mut text, mut below) = (error.to_string(), error.source());
    while let Some(source) = below {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        below = source.source();
    }
    text
}
