//! From an accepted socket to an authenticated connection.

use super::connection::{PartialHead, Phase};
use super::outbox::Kind;
use super::{Engine, Identity, RETRY_AFTER_SECS};
use crate::mesh::ToShard;
use crate::names::ConnectionId;
use roomwire_wire::close::CloseCode;
use roomwire_wire::handshake::{
    HeadScanner, NoProxyHeader, PROXY_BYTES_MAX, Refusal, Upgrade, encode_accept, parse, parse_proxy,
};
use roomwire_wire::message::ServerMessage;

impl Engine {
    /// Bytes of an upgrade head. Most heads come in one piece and are parsed where they lie.
    pub(super) fn head_received(&mut self, id: ConnectionId, bytes: &mut [u8]) {
        let Some(connection) = self.connection_mut(id) else { return };
        let kept = connection.rare.as_mut().and_then(|rare| rare.head.take());
        connection.tidy();
        if kept.as_ref().map_or(self.config.proxies.is_some(), |head| head.is_proxy) {
            self.proxy_received(id, kept.unwrap_or_default().bytes, bytes);
        } else {
            self.upgrade_received(id, kept, bytes);
        }
    }

    /// Bytes of what a balancer says about its client; the client's own follow.
    fn proxy_received(&mut self, id: ConnectionId, mut kept: Vec<u8>, bytes: &mut [u8]) {
        let before = kept.len();
        kept.extend_from_slice(&bytes[..bytes.len().min(PROXY_BYTES_MAX)]);
        match parse_proxy(&kept) {
            Ok(Some(header)) => {
                if let Err(limit) = self.peers.introduce(id.slot, header.client) {
                    self.counters.limit_crossed(limit);
                    return self.refuse(id, Refusal::Unavailable { retry_after_secs: RETRY_AFTER_SECS });
                }
                // What was kept was not all of it, so it ends in these bytes.
                let rest = header.length.saturating_sub(before).min(bytes.len());
                self.upgrade_received(id, None, &mut bytes[rest..]);
            }
            Ok(None) => self.keep_head(id, PartialHead { bytes: kept, is_proxy: true, ..PartialHead::default() }),
            Err(NoProxyHeader) => {
                self.counters.proxies_refused_total += 1;
                self.counters.handshakes_refused_total += 1;
                self.drop_now(id);
            }
        }
    }

    /// Bytes of the upgrade head itself.
    fn upgrade_received(&mut self, id: ConnectionId, kept: Option<PartialHead>, bytes: &mut [u8]) {
        let Some(mut head) = kept else {
            let mut scanner = HeadScanner::default();
            match scanner.find_end(bytes) {
                Some(end) => {
                    let (head, rest) = bytes.split_at_mut(end);
                    self.upgrade(id, head, rest);
                }
                None => self.keep_head(id, PartialHead { bytes: bytes.to_vec(), scanner, is_proxy: false }),
            }
            return;
        };
        head.bytes.extend_from_slice(bytes);
        match head.scanner.find_end(&head.bytes) {
            Some(end) => {
                let rest = bytes.len().saturating_sub(head.bytes.len() - end);
                self.upgrade(id, &head.bytes[..end], &mut bytes[rest..]);
            }
            None => self.keep_head(id, head),
        }
    }

    fn keep_head(&mut self, id: ConnectionId, head: PartialHead) {
        if self.is_head_too_large(head.bytes.len()) {
            self.refuse(id, Refusal::HeadTooLarge);
        } else if let Some(connection) = self.connection_mut(id) {
            connection.rare_mut().head = Some(head);
        }
    }

    fn is_head_too_large(&mut self, bytes: usize) -> bool {
        let limit = self.config.limits.header_bytes_max;
        let crossed = limit > 0 && bytes > limit as usize;
        if crossed {
            self.counters.limit_crossed("header_bytes_max");
        }
        crossed
    }

    fn upgrade(&mut self, id: ConnectionId, head: &[u8], rest: &mut [u8]) {
        if self.is_head_too_large(head.len()) {
            return self.refuse(id, Refusal::HeadTooLarge);
        }
        if self.drain.is_some() {
            return self.refuse(id, Refusal::Unavailable { retry_after_secs: RETRY_AFTER_SECS });
        }
        let upgrade = match parse(head) {
            Ok(upgrade) => upgrade,
            Err(refusal) => return self.refuse(id, refusal),
        };
        if !self.is_origin_allowed(upgrade.origin) {
            return self.refuse(id, Refusal::Forbidden);
        }
        let identity = self.authenticate(upgrade.token.as_deref());
        if identity.is_none() {
            self.counters.auth_failures_total += 1;
            if self.config.reject_by_http {
                return self.refuse(id, Refusal::Unauthorized);
            }
        }
        self.accept_upgrade(id, &upgrade);
        match identity {
            Some(identity) => {
                self.open(id, identity);
                if !rest.is_empty() {
                    self.frames_received(id, rest);
                }
            }
            None => self.close(id, CloseCode::Policy, CloseCode::Policy.row().text),
        }
    }

    /// Without an `Origin` the client is no browser: identity comes from the token, never from a cookie.
    fn is_origin_allowed(&self, origin: Option<&str>) -> bool {
        let allowed = &self.config.allowed_origins;
        origin.is_none_or(|origin| allowed.iter().any(|one| one == "*" || one == origin))
    }

    fn authenticate(&mut self, token: Option<&str>) -> Option<Identity> {
        let token = token?;
        let limit = self.config.limits.token_bytes_max;
        if limit > 0 && token.len() > limit as usize {
            self.counters.limit_crossed("token_bytes_max");
            return None;
        }
        (self.verify)(token, self.now.unix_ms)
    }

    fn accept_upgrade(&mut self, id: ConnectionId, upgrade: &Upgrade<'_>) {
        let answer = self.framer.raw(|out| encode_accept(upgrade, out));
        self.send_frame(id, &answer, Kind::Control);
        self.counters.upgrades_total += 1;
        let heartbeat_ticks = self.heartbeat_ticks();
        // The first ping comes after 5/6 to all of the heartbeat, so that those who came at once are not pinged at once.
        let spread = self.random.below(heartbeat_ticks / 6 + 1);
        let tick = self.tick;
        if let Some(connection) = self.connection_mut(id) {
            connection.phase = Phase::Open;
            connection.heard = tick - spread.min(tick);
            connection.mark = super::wheel::NEVER;
        }
    }

    fn open(&mut self, id: ConnectionId, identity: Identity) {
        let expires = self.expiry_tick(identity.expires_ms);
        let user = identity.user.clone();
        let slot = self.enter_user(identity.user, id);
        let Some(connection) = self.connection_mut(id) else { return };
        connection.user = slot;
        connection.grants = identity.grants;
        connection.expires = expires;
        self.arm(id);
        if self.config.echo {
            return;
        }
        let node = self.config.node.clone();
        let connection_id = format!("{node}-{}-{:x}-{:x}-{:x}", self.shard.0, id.slot, id.generation, self.boot >> 16);
        let connected = ServerMessage::Connected {
            username: &user.name,
            timestamp: self.now.unix_ms,
            user_id: &user.id,
            connection_id: &connection_id,
            node: &node,
            heartbeat_ms: u64::from(self.config.heartbeat_ms),
        };
        self.send(id, &connected, Kind::Kept);
        let Some(stay) = self.users.get(slot).map(|local| local.stay) else { return };
        let up = ToShard::UserUp { user: user.id.clone(), from: self.reference(id), stay };
        self.post_home(&user.id, up);
    }

    /// Answers an upgrade with an HTTP error, and closes.
    pub(super) fn refuse(&mut self, id: ConnectionId, refusal: Refusal) {
        self.counters.handshakes_refused_total += 1;
        let answer = self.framer.raw(|out| refusal.encode(out));
        self.finish(id, &answer);
    }
}
