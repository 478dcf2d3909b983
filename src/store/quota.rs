//! Quotas: clients whose objects count against a limit of their own and are kept apart.
//!
//! An object counts against its creator's quota from its creation until it is gone, is demoted, or
//! its creator leaves. While it is idle it stands in the account's own eviction order, where only
//! the owner's creates and an explicit evict can reach it. A demoted object, and every object of a
//! client that left, belongs to everybody. Quotas reserve no memory: they only keep 30 % of the
//! capacity free of quotas, as the original did.

use std::collections::BTreeMap;

use crate::eviction::{EvictionPolicy, PolicyKind, Population};
use crate::ids::{ClientId, Slot};
use crate::protocol::refusal::Refusal;

/// Per cent of the capacity that quotas may take together.
const QUOTA_SHARE_MAX: u64 = 70;

/// The quota of one client and the objects that count against it.
#[derive(Debug)]
pub struct Account {
    /// The quota in bytes.
    pub quota: u64,
    /// Bytes that count against it. Larger than the quota only if the quota came later.
    pub used: u64,
    /// The idle ones of its objects.
    pub idle: Box<dyn EvictionPolicy>,
    /// All its objects with the order of their creation.
    objects: BTreeMap<Slot, u64>,
    /// Those in use, oldest first.
    busy: BTreeMap<u64, Slot>,
    next_order: u64,
}

impl Account {
    /// Number of objects that count against the quota.
    pub fn objects(&self) -> usize {
        self.objects.len()
    }

    /// Number of those that somebody holds.
    pub fn busy_objects(&self) -> usize {
        self.busy.len()
    }

    /// Those that somebody holds, oldest first.
    pub fn busy(&self) -> impl Iterator<Item = Slot> {
        self.busy.values().copied()
    }

    /// A new object, in use by its creator.
    pub fn charge(&mut self, slot: Slot, bytes: u64) {
        self.used += bytes;
        self.next_order += 1;
        self.objects.insert(slot, self.next_order);
        self.busy.insert(self.next_order, slot);
    }

    /// Nobody uses the object any more.
    pub fn became_idle(&mut self, slot: Slot, bytes: u64) {
        self.busy.remove(&self.objects[&slot]);
        self.idle.became_idle(slot, bytes);
    }

    /// Somebody uses the object again.
    pub fn became_busy(&mut self, slot: Slot) {
        self.busy.insert(self.objects[&slot], slot);
        self.idle.became_busy(slot);
    }

    /// The object does not count here any more: it is gone, or belongs to everybody now.
    pub fn discharge(&mut self, slot: Slot, bytes: u64) {
        let order = self.objects.remove(&slot).expect("the object counts here");
        self.busy.remove(&order);
        self.idle.removed(slot);
        self.used -= bytes;
    }
}

/// All quotas.
#[derive(Debug)]
pub struct Quotas {
    accounts: BTreeMap<ClientId, Account>,
    capacity: u64,
    policy: PolicyKind,
}

impl Quotas {
    /// No quotas yet, in a store of so many bytes.
    pub fn new(capacity: u64, policy: PolicyKind) -> Self {
        Self { accounts: BTreeMap::new(), capacity, policy }
    }

    /// Gives a client a quota, once.
    pub fn grant(&mut self, client: ClientId, quota: u64) -> Result<(), Refusal> {
        if let Some(account) = self.accounts.get(&client) {
            return Err(Refusal::QuotaAlreadySet(account.quota));
        }
        let available = (self.capacity / 100 * QUOTA_SHARE_MAX
            + self.capacity % 100 * QUOTA_SHARE_MAX / 100)
            .saturating_sub(self.granted());
        if quota > available {
            return Err(Refusal::QuotaUnavailable { requested: quota, available });
        }
        let account = Account {
            quota,
            used: 0,
            idle: self.policy.build(Population::Few),
            objects: BTreeMap::new(),
            busy: BTreeMap::new(),
            next_order: 0,
        };
        self.accounts.insert(client, account);
        Ok(())
    }

    /// Bytes of all quotas together.
    pub fn granted(&self) -> u64 {
        self.accounts.values().map(|account| account.quota).sum()
    }

    /// The account of a client that has a quota.
    pub fn get(&self, client: ClientId) -> Option<&Account> {
        self.accounts.get(&client)
    }

    /// The account of a client that has a quota, to be changed.
    pub fn get_mut(&mut self, client: ClientId) -> Option<&mut Account> {
        self.accounts.get_mut(&client)
    }

    /// Ends the account of a client that leaves.
    pub fn remove(&mut self, client: ClientId) -> Option<Account> {
        self.accounts.remove(&client)
    }

    /// All accounts, by client.
    pub fn iter(&self) -> impl Iterator<Item = (ClientId, &Account)> {
        self.accounts.iter().map(|(client, account)| (*client, account))
    }

    /// Checks that each account's parts agree.
    pub fn check_invariants(&self) {
        for account in self.accounts.values() {
            account.idle.check_invariants();
            let parts = account.busy.len() + account.idle.idle_objects();
            assert_eq!(account.objects.len(), parts, "a charged object is either idle or in use");
        }
    }
}
