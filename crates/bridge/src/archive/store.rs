//! Object stores: their addresses, how to get in, and the few operations that an archive needs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    Certificate, ClientOptions, Error, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, RetryConfig,
};
use url::Url;

use crate::{Failure, Result};

/// How long a connection may take, and how long the store may be silent. A large object may take any time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// A request is tried so often; everything that fails then is tried again from the listing.
const RETRIES: usize = 3;
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);

/// The address of an archive: `s3://BUCKET/PREFIX`, `gs://…`, `az://CONTAINER/PREFIX`, `file:///DIRECTORY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    url: Url,
    /// Below it: of a queue of a bus.
    below: Vec<String>,
}

impl Address {
    /// The part of it for a queue with this path below a bus.
    #[must_use]
    pub fn below(&self, path: &std::path::Path) -> Self {
        Self { below: path.iter().map(|name| name.to_string_lossy().into_owned()).collect(), ..self.clone() }
    }
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted =
            "an archive is at s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIRECTORY";
        let url: Url = text.parse().map_err(|error| format!("{text}: {error}; {wanted}"))?;
        let has_host = url.host_str().is_some_and(|host| !host.is_empty());
        if has_host != matches!(url.scheme(), "s3" | "gs" | "az") || !has_host && url.scheme() != "file" {
            return Err(format!("{text}: {wanted}"));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err("no secrets and no options in the address: see --credentials and --option".to_owned());
        }
        Ok(Self { url, below: Vec::new() })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.url.as_str().trim_end_matches('/'))?;
        self.below.iter().try_for_each(|name| write!(f, "/{name}"))
    }
}

/// How to get in. Besides, the environment is asked: `AWS_…`, `GOOGLE_…`, `AZURE_…`. The files are read again at each
/// attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// A file of lines `NAME=VALUE`, for secrets.
    pub credentials: Option<PathBuf>,
    /// Certificates of authorities (PEM) that are trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// What else the store's client is to know, by the names of the crate object_store: `endpoint`, `region`, ….
    pub options: BTreeMap<String, String>,
}

impl Access {
    /// Everything that the client is to know, later ones overrule earlier ones. The unknown of the environment are
    /// passed over.
    fn pairs(&self, prefix: &str) -> Result<Vec<(String, String, bool)>> {
        let mut pairs: Vec<_> = std::env::vars()
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(name, value)| (name.to_ascii_lowercase(), value, false))
            .collect();
        if let Some(path) = &self.credentials {
            let cannot = |error| Failure::Again(format!("{}: cannot read it: {error}", path.display()));
            let text = std::fs::read_to_string(path).map_err(cannot)?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            for (number, line) in (1..).zip(lines) {
                let bad = || Failure::Config(format!("{}: entry {number} is not NAME=VALUE", path.display()));
                let (name, value) = line.split_once('=').ok_or_else(bad)?;
                pairs.push((name.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned(), true));
            }
        }
        let options = self.options.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone(), true));
        pairs.extend(options);
        Ok(pairs)
    }

    fn client(&self) -> Result<ClientOptions> {
        let mut options = ClientOptions::new()
            .with_timeout_disabled()
            .with_read_timeout(READ_TIMEOUT)
            .with_connect_timeout(CONNECT_TIMEOUT);
        if let Some(path) = &self.ca {
            let bad = |error: &dyn std::fmt::Display| Failure::Again(format!("{}: {error}", path.display()));
            let pem = std::fs::read(path).map_err(|error| bad(&error))?;
            for certificate in Certificate::from_pem_bundle(&pem).map_err(|error| bad(&error))? {
                options = options.with_root_certificate(certificate);
            }
        }
        Ok(options)
    }
}

/// An object, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) path: Path,
    /// The last part of its path.
    pub(super) name: String,
    pub(super) size: u64,
    /// When it was written, by the store's clock, in ms since the epoch.
    pub(super) modified_ms: i64,
}

impl From<ObjectMeta> for Object {
    fn from(meta: ObjectMeta) -> Self {
        let name = meta.location.filename().unwrap_or_default().to_owned();
        Self { name, size: meta.size, modified_ms: meta.last_modified.timestamp_millis(), path: meta.location }
    }
}

/// A connection to the archive at an address.
#[derive(Debug, Clone)]
pub(super) struct Store {
    inner: Arc<dyn ObjectStore>,
    /// The address's path.
    root: Path,
    shown: String,
    /// It is a directory of this machine, and so may be one that is not mounted.
    is_directory: bool,
}

/// An error with the first cause of it: that the connection was refused, or the certificate is unknown.
fn with_cause(error: &Error) -> String {
    let mut text = error.to_string();
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    if let Some(first) = causes.last().map(ToString::to_string).filter(|first| !text.contains(first)) {
        text.push_str(": ");
        text.push_str(&first);
    }
    text
}

/// Makes the client of a store, with all that it is to know.
macro_rules! client {
    ($builder:ident, $url:expr, $access:expr, $prefix:literal) => {{
        let mut builder = $builder::new().with_url($url.as_str()).with_client_options($access.client()?);
        for (name, value, must_be_known) in $access.pairs($prefix)? {
            match name.parse() {
                Ok(key) => builder = builder.with_config(key, value),
                Err(_) if must_be_known => return Err(Failure::Config(format!("{}: unknown option {name}", $url))),
                Err(_) => {}
            }
        }
        let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
        builder.with_retry(retry).build().map(|store| Arc::new(store) as Arc<dyn ObjectStore>)
    }};
}

impl Store {
    /// # Errors
    /// If the options make no sense, or a file can't be read. Nothing is asked of the store yet.
    pub(super) fn open(address: &Address, access: &Access) -> Result<Self> {
        // The first one counts; whoever has installed another one is content with it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = &address.url;
        let inner = match url.scheme() {
            "s3" => client!(AmazonS3Builder, url, access, "AWS_"),
            "gs" => client!(GoogleCloudStorageBuilder, url, access, "GOOGLE_"),
            "az" => client!(MicrosoftAzureBuilder, url, access, "AZURE_"),
            _ => Ok(Arc::new(LocalFileSystem::new().with_fsync(true)) as Arc<dyn ObjectStore>),
        };
        let inner = inner.map_err(|error| Failure::Config(format!("{address}: {error}")))?;
        let root = Path::from_url_path(url.path()).map_err(|error| Failure::Config(format!("{address}: {error}")))?;
        let root = address.below.iter().fold(root, |path, name| path.join(name.as_str()));
        Ok(Self { inner, root, shown: address.to_string(), is_directory: url.scheme() == "file" })
    }

    /// The part of it in a directory below the address.
    #[cfg(feature = "mount")]
    pub(super) fn below(&self, names: &[String]) -> Self {
        let root = names.iter().fold(self.root.clone(), |root, name| root.join(name.as_str()));
        let shown = names.iter().fold(self.shown.clone(), |shown, name| format!("{shown}/{name}"));
        Self { root, shown, ..self.clone() }
    }

    /// The path of a directory or object below the address.
    pub(super) fn path(&self, names: &[&str]) -> Path {
        names.iter().fold(self.root.clone(), |path, name| path.join(*name))
    }

    /// An object or directory, for people.
    pub(super) fn shown(&self, path: &Path) -> String {
        let below = path.as_ref().strip_prefix(self.root.as_ref()).unwrap_or(path.as_ref());
        format!("{}/{}", self.shown, below.trim_start_matches('/'))
    }

    /// Whether it is a directory.
    #[cfg(feature = "mount")]
    pub(super) fn is_directory(&self) -> bool {
        self.is_directory
    }

    /// What is wrong if there is nothing at the address.
    pub(super) fn nothing(&self) -> Failure {
        let hint = if self.is_directory { ": is that directory mounted?" } else { "" };
        Failure::Config(format!("{} has no archive of a queue{hint}", self.shown))
    }

    /// Whether a directory is missing in one. Nothing is known of directories in other stores.
    pub(super) async fn lacks(&self, path: &Path) -> bool {
        let Some(dir) = LocalFileSystem::new().path_to_filesystem(path).ok().filter(|_| self.is_directory) else {
            return false;
        };
        tokio::task::spawn_blocking(move || !dir.is_dir()).await.unwrap_or(false)
    }

    fn failed(&self, path: &Path, what: &str) -> impl FnOnce(Error) -> Failure {
        let shown = self.shown(path);
        let what = what.to_owned();
        move |error| {
            let is_config =
                matches!(error, Error::NotSupported { .. } | Error::NotImplemented { .. } | Error::InvalidPath { .. });
            let text = format!("{shown}: cannot {what} it: {}", with_cause(&error));
            match error {
                _ if is_config => Failure::Config(text),
                Error::NotFound { .. } => Failure::Missing(text),
                _ => Failure::Again(text),
            }
        }
    }

    /// The names of the directories in one.
    pub(super) async fn directories(&self, path: &Path) -> Result<Vec<String>> {
        let listed = self.inner.list_with_delimiter(Some(path)).await.map_err(self.failed(path, "list"))?;
        Ok(listed.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect())
    }

    /// The objects in a directory whose names come after a text, in no particular order.
    pub(super) async fn list(&self, path: &Path, after: &str) -> Result<Vec<Object>> {
        let listed = if after.is_empty() {
            self.inner.list(Some(path))
        } else {
            self.inner.list_with_offset(Some(path), &path.clone().join(after))
        };
        let objects: Vec<Object> =
            listed.map_ok(Object::from).try_collect().await.map_err(self.failed(path, "list"))?;
        Ok(objects.into_iter().filter(|object| object.path.prefix_matches(path)).collect())
    }

    /// Writes an object that must not exist yet. False: it does.
    pub(super) async fn create(&self, path: &Path, bytes: Bytes) -> Result<bool> {
        match self.inner.put_opts(path, PutPayload::from(bytes), PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(self.failed(path, "write")(error)),
        }
    }

    /// Writes an object, whether it exists or not.
    pub(super) async fn replace(&self, path: &Path) -> Result<(), Error> {
        self.inner.put(path, PutPayload::new()).await.map(drop)
    }

    /// Some bytes of an object.
    pub(super) async fn range(&self, path: &Path, range: Range<u64>) -> Result<Bytes> {
        self.inner.get_range(path, range).await.map_err(self.failed(path, "read"))
    }

    /// All of an object, piece by piece.
    pub(super) async fn read<'a>(&'a self, path: &'a Path) -> Result<BoxStream<'a, Result<Bytes>>> {
        let found = self.inner.get(path).await.map_err(self.failed(path, "read"))?;
        Ok(found.into_stream().map(|piece| piece.map_err(|error| self.failed(path, "read")(error))).boxed())
    }

    pub(super) async fn delete(&self, path: &Path) -> Result<()> {
        match self.inner.delete(path).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(path, "delete")(error)),
        }
    }
}
