//! Failed log-ins, counted for all processes. A script that is repeated after a dropped connection may
//! count an attempt twice.

use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

use super::{MysqlRedisStore, RedisSessions};
use crate::app::StoreError;
use crate::app::attempts::{Charge, SharedAttempts};

#[async_trait]
impl SharedAttempts for MysqlRedisStore {
    async fn charge(&self, charges: &[Charge]) -> Result<Option<Duration>, StoreError> {
        let redis = self.sessions().best_effort();
        let mut call = redis.scripts.charge.prepare_invoke();
        for charge in charges {
            call.key(redis.count_key(charge)).arg(charge.burst.get()).arg(micros(charge.refill));
        }
        let wait: i64 = redis.run("charge", &call).await?;
        Ok(u64::try_from(wait).ok().map(Duration::from_micros))
    }

    async fn refund(&self, charges: &[Charge]) -> Result<(), StoreError> {
        let redis = self.sessions().best_effort();
        let mut call = redis.scripts.refund.prepare_invoke();
        for charge in charges {
            call.key(redis.count_key(charge)).arg(micros(charge.refill));
        }
        redis.run("refund", &call).await
    }
}

impl RedisSessions {
    /// The key of a count, hashed: a made-up id may be long, and addresses are personal.
    fn count_key(&self, charge: &Charge) -> String {
        let digest = Sha256::digest(format!("{:?}\n{}", charge.count, charge.key));
        format!(
            "{}failures:{:x}",
            self.keys.base,
            u128::from_be_bytes(std::array::from_fn(|at| digest[at]))
        )
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
