//! Uses of join tokens, counted for all registries together.

use async_trait::async_trait;
use tourin_registry_api::wire::JoinClaims;

use super::{Redis, millis};
use crate::app::ports::{REPEATABLE, TokenUses, Unavailable};

/// Counts uses in Redis.
pub struct RedisUses(Redis);

impl RedisUses {
    pub(crate) fn new(redis: Redis) -> Self {
        Self(redis)
    }
}

#[async_trait]
impl TokenUses for RedisUses {
    async fn count(
        &self,
        claims: &JoinClaims,
        limit: u32,
        request: &str,
    ) -> Result<bool, Unavailable> {
        let mut call = self.0.call(&self.0.scripts.count_use);
        call.arg(&claims.jti).arg(limit).arg(claims.exp);
        call.arg(request).arg(millis(REPEATABLE));
        let counted: u8 = self.0.run(&call).await?;
        Ok(counted == 1)
    }
}
