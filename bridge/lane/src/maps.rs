//! Maps by name or id. Each look goes through many of them for each dirty stream, and the standard library's hash costs several
//! times as much. It also withstands names that were chosen to collide; here all names come from the authority.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

pub(crate) type Map<K, V> = HashMap<K, V, RandomState>;
pub(crate) type Set<K> = HashSet<K, RandomState>;
