//! The part of `skyfill run` that shares work with other processes: what it is made of, when it begins and ends, and what
//! `status` says of it. Nothing of it is there without `source.group`, or in a build without Kafka.

#[cfg(feature = "kafka")]
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::config::settings::Settings;
use crate::net::territory::Territory;
use crate::pipeline::{Data, Reach, Surrounding};
use crate::store::error::StoreError;

#[cfg(feature = "kafka")]
use crate::pipeline::sharing::{GroupView, Sharing, Worker};

/// The group that this process belongs to, if it does.
#[derive(Default)]
pub struct Group {
    #[cfg(feature = "kafka")]
    worker: Option<Worker>,
    #[cfg(feature = "kafka")]
    sharing: Option<Sharing>,
}

/// What a pipeline runs in: with a group no host is ours before it says so.
#[must_use]
pub fn within(settings: &Settings, surrounding: &Surrounding) -> Surrounding {
    let mut surrounding = surrounding.clone();
    if settings.source.group.is_some() {
        surrounding.territory = Territory::shared();
    }
    surrounding
}

#[cfg(feature = "kafka")]
impl Group {
    /// Makes its part of the pipeline that is about to start over `data`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn prepare(
        &mut self,
        data: &mut Data,
        settings: &Settings,
        surrounding: &Surrounding,
    ) -> Result<(), StoreError> {
        let territory = &surrounding.territory;
        let Some(mut worker) = Worker::new(settings, &surrounding.clock, territory)? else {
            return Ok(());
        };
        if let Some(other) = data.check_filter(false)? {
            return Err(StoreError::Config(format!(
                "{} of its accounts were exported with other records.types, another [window] or other pseudonyms: a worker needs another data_dir for these",
                other.accounts
            )));
        }
        let rows = data.rows_mut();
        worker.begin(&rows.data_id()?, rows.inputs()?);
        data.follow_with(Arc::new(Mutex::new(vec![worker.sink()])));
        self.worker = Some(worker);
        Ok(())
    }

    /// Joins it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn start(&mut self, reach: Reach) -> Result<(), StoreError> {
        if let Some(worker) = self.worker.take() {
            self.sharing = Some(worker.start(reach)?);
        }
        Ok(())
    }

    /// Whether this process belongs to one.
    #[must_use]
    pub const fn is_there(&self) -> bool {
        self.sharing.is_some()
    }

    /// What `status` says of it.
    #[must_use]
    pub fn view(&self) -> Value {
        let view = self.sharing.as_ref().map(|sharing| sharing.view().borrow().clone());
        // Plain numbers and texts always serialise.
        view.map_or(Value::Null, |view: GroupView| serde_json::to_value(view).unwrap_or_default())
    }

    /// Takes nothing more.
    pub fn quieten(&self) {
        self.sharing.iter().for_each(Sharing::quieten);
    }

    /// Leaves it.
    pub async fn end(self) {
        if let Some(sharing) = self.sharing {
            let _ended = tokio::task::spawn_blocking(move || sharing.end()).await;
        }
    }
}

#[cfg(not(feature = "kafka"))]
#[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "as with Kafka")]
#[allow(clippy::missing_const_for_fn, clippy::unused_async, reason = "as with Kafka")]
impl Group {
    /// Nothing: the configuration with a group is refused.
    ///
    /// # Errors
    /// None.
    pub fn prepare(
        &mut self,
        _: &mut Data,
        _: &Settings,
        _: &Surrounding,
    ) -> Result<(), StoreError> {
        Ok(())
    }

    /// Nothing.
    ///
    /// # Errors
    /// None.
    pub fn start(&mut self, _: Reach) -> Result<(), StoreError> {
        Ok(())
    }

    /// It does not.
    #[must_use]
    pub const fn is_there(&self) -> bool {
        false
    }

    /// Null.
    #[must_use]
    pub fn view(&self) -> Value {
        Value::Null
    }

    /// Nothing.
    pub fn quieten(&self) {}

    /// Nothing.
    pub async fn end(self) {}
}
