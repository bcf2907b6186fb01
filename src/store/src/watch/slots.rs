//! A table with stable, reusable places, and tickets that notice when a place has a new tenant.

/// A place in [`Slots`], good only as long as the tenant it was given for lives there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) at: u32,
    generation: u32,
}

#[derive(Debug)]
pub(super) struct Slots<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slots<T> {
    pub(super) fn insert(&mut self, tenant: T) -> u32 {
        self.insert_with(|_| tenant)
    }

    /// As `insert`, for tenants that must know their place.
    pub(super) fn insert_with(&mut self, tenant: impl FnOnce(u32) -> T) -> u32 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            u32::try_from(self.places.len() - 1).expect("four billion tenants do not fit into memory")
        });
        self.places[at as usize].1 = Some(tenant(at));
        at
    }

    pub(super) fn remove(&mut self, at: u32) -> Option<T> {
        let (generation, place) = self.places.get_mut(at as usize)?;
        let tenant = place.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(at);
        Some(tenant)
    }

    pub(super) fn get(&self, at: u32) -> Option<&T> {
        self.places.get(at as usize)?.1.as_ref()
    }

    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        self.places.get_mut(at as usize)?.1.as_mut()
    }

    pub(super) fn ticket(&self, at: u32) -> Ticket {
        let generation = self.places[at as usize].0;
        Ticket { at, generation }
    }

    /// The tenant that the ticket was written for, if still there.
    pub(super) fn redeem(&mut self, ticket: Ticket) -> Option<&mut T> {
        let (generation, place) = self.places.get_mut(ticket.at as usize)?;
        (*generation == ticket.generation).then_some(place.as_mut()).flatten()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Ticket, &mut T)> {
        self.places.iter_mut().zip(0..).filter_map(|((generation, place), at)| {
            let generation = *generation;
            place.as_mut().map(|tenant| (Ticket { at, generation }, tenant))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_void_once_its_tenant_has_left() {
        let mut slots = Slots::default();
        let at = slots.insert("old");
        let ticket = slots.ticket(at);
        assert_eq!(slots.redeem(ticket), Some(&mut "old"));
        assert_eq!(slots.remove(at), Some("old"));
        assert_eq!(slots.insert("new"), at, "places are reused");
        assert_eq!(slots.redeem(ticket), None);
        assert_eq!(slots.get(at), Some(&"new"));
    }
}
