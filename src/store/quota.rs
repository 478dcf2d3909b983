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

/// What the accounts add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Bytes of the quotas.
    pub granted: u64,
    /// Bytes of the idle objects that count against them.
    pub idle_bytes: u64,
    /// Number of objects that count against them.
    pub objects: usize,
    /// Number of those that somebody holds.
    pub busy_objects: usize,
}

impl Totals {
    fn add(&mut self, other: Self) {
        self.granted += other.granted;
        self.idle_bytes += other.idle_bytes;
        self.objects += other.objects;
        self.busy_objects += other.busy_objects;
    }

    fn subtract(&mut self, other: Self) {
        self.granted -= other.granted;
        self.idle_bytes -= other.idle_bytes;
        self.objects -= other.objects;
        self.busy_objects -= other.busy_objects;
    }
}

impl Account {
    fn totals(&self) -> Totals {
        Totals {
            granted: self.quota,
            idle_bytes: self.idle.idle_bytes(),
            objects: self.objects.len(),
            busy_objects: self.busy.len(),
        }
    }

    /// Number of objects that count against the quota.
    pub fn objects(&self) -> usize {
        self.objects.len()
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
    pub fn became_idle(&mut self, slot: Slot, bytes: u64, now: u64) {
        self.busy.remove(&self.objects[&slot]);
        self.idle.became_idle(slot, bytes, now);
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
    totals: Totals,
    capacity: u64,
    policy: PolicyKind,
}

impl Quotas {
    /// No quotas yet, in a store of so many bytes.
    pub fn new(capacity: u64, policy: PolicyKind) -> Self {
        Self { accounts: BTreeMap::new(), totals: Totals::default(), capacity, policy }
    }

    /// Gives a client a quota, once.
    pub fn grant(&mut self, client: ClientId, quota: u64) -> Result<(), Refusal> {
        if let Some(account) = self.accounts.get(&client) {
            return Err(Refusal::QuotaAlreadySet(account.quota));
        }
        let available = (self.capacity / 100 * QUOTA_SHARE_MAX
            + self.capacity % 100 * QUOTA_SHARE_MAX / 100)
            .saturating_sub(self.totals.granted);
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
        self.totals.add(account.totals());
        self.accounts.insert(client, account);
        Ok(())
    }

    /// What all accounts add up to, known without a look at them.
    pub const fn totals(&self) -> Totals {
        self.totals
    }

    pub fn len(&self) -> usize {
        self.accounts.len()
    }

    /// The account of a client that has a quota.
    pub fn get(&self, client: ClientId) -> Option<&Account> {
        self.accounts.get(&client)
    }

    /// The order of the idle objects of a client that has a quota. Which objects are in it stays.
    pub fn order_of(&mut self, client: ClientId) -> Option<&mut dyn EvictionPolicy> {
        Some(&mut *self.accounts.get_mut(&client)?.idle)
    }

    /// Changes the account of a client that has a quota.
    pub fn change<R>(
        &mut self,
        client: ClientId,
        change: impl FnOnce(&mut Account) -> R,
    ) -> Option<R> {
        let account = self.accounts.get_mut(&client)?;
        self.totals.subtract(account.totals());
        let result = change(account);
        self.totals.add(account.totals());
        Some(result)
    }

    /// The first client after this one that has a quota.
    pub fn next_after(&self, client: ClientId) -> Option<ClientId> {
        let above = (std::ops::Bound::Excluded(client), std::ops::Bound::Unbounded);
        self.accounts.range(above).next().map(|(client, _)| *client)
    }

    /// Ends the account of a client that leaves.
    pub fn remove(&mut self, client: ClientId) {
        if let Some(account) = self.accounts.remove(&client) {
            self.totals.subtract(account.totals());
        }
    }

    /// All accounts, by client.
    pub fn iter(&self) -> impl Iterator<Item = (ClientId, &Account)> {
        self.accounts.iter().map(|(client, account)| (*client, account))
    }

    /// Checks that each account's parts agree.
    pub fn check_invariants(&self) {
        let mut totals = Totals::default();
        for account in self.accounts.values() {
            totals.add(account.totals());
            account.idle.check_invariants();
            let parts = account.busy.len() + account.idle.idle_objects();
            assert_eq!(account.objects.len(), parts, "a charged object is either idle or in use");
        }
        assert_eq!(self.totals, totals, "the totals are those of all accounts");
    }
}
