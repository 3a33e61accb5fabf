"""Another name of `samprior.storage.holding`, where the repair of a store needs it, too."""

from samprior.storage.holding import hold_for_life as hold_for_life
