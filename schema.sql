CREATE TABLE manager (
  /* The manager itself: one row, written at each start. */
  id            INTEGER PRIMARY KEY CHECK (id = 1),
  cluster_id    TEXT    NOT NULL,                -- shown as ID by docker info; made once, never changes
  version       TEXT    NOT NULL DEFAULT '',     -- of the program that runs, or ran last
  strategy      TEXT    NOT NULL DEFAULT 'spread',
  strategy_sql  TEXT    NOT NULL DEFAULT '',     -- of a strategy of the operator's; '' for one that is built in
  filters       TEXT    NOT NULL DEFAULT '',     -- names in use, comma between
  overcommit    REAL    NOT NULL DEFAULT 0.05,   -- 0.05 promises 105 % of a node's CPUs and memory
  count_stopped INTEGER NOT NULL DEFAULT 0 CHECK (count_stopped IN (0, 1)),
  cpu_shares    TEXT    NOT NULL DEFAULT 'weights' CHECK (cpu_shares IN ('weights', 'cores')), -- what CpuShares of a container mean
  relay_ports   INTEGER NOT NULL DEFAULT 0 CHECK (relay_ports IN (0, 1)), -- 1: a fixed port may be published once in the cluster
  drain         TEXT    NOT NULL DEFAULT 'policy' CHECK (drain IN ('policy', 'recreate')), -- which containers a drain moves
  wait_ms       INTEGER NOT NULL DEFAULT 0,      -- that a create waits for room, unless it says itself
  group_by      TEXT    NOT NULL DEFAULT '[]',   -- labels whose value makes a group, JSON
  started_at    INTEGER NOT NULL DEFAULT 0       -- unix seconds
) STRICT;

CREATE TABLE nodes (
  /* A Docker host the cluster knows. The operator gives the address and sets the
     availability; all else is what its engine says, or what we reserved there. */
  id                INTEGER PRIMARY KEY,
  address           TEXT    NOT NULL UNIQUE,       -- tcp://host:port, unix:///path or ssh://user@host:port/path
  engine_id         TEXT,                          -- NULL until the engine has answered once
  name              TEXT    NOT NULL DEFAULT '',   -- host name of the engine; a clash gets the address behind it
  ip                TEXT    NOT NULL DEFAULT '',   -- numeric, shown for published ports; '' for a local socket
  state             TEXT    NOT NULL DEFAULT 'pending'
                    CHECK (state IN ('pending', 'healthy', 'unhealthy', 'duplicate', 'removed')),
  state_at          INTEGER NOT NULL DEFAULT 0,    -- unix seconds, when the state began
  availability      TEXT    NOT NULL DEFAULT 'active'
                    CHECK (availability IN ('active', 'pause', 'drain')),
  availability_at   INTEGER NOT NULL DEFAULT 0,    -- unix seconds, when the operator set it
  step              TEXT    NOT NULL DEFAULT '',   -- what was being done when it went wrong: ping, info, events, …
  error             TEXT    NOT NULL DEFAULT '',   -- the last error, '' when all is well
  failures          INTEGER NOT NULL DEFAULT 0,    -- in a row, 0 to 3; a node that failed lately is chosen last
  answers           INTEGER NOT NULL DEFAULT 1 CHECK (answers IN (0, 1)),   -- 0: was silent when a create needed it
  lapsed            INTEGER NOT NULL DEFAULT 0 CHECK (lapsed IN (0, 1)),    -- 1: its swarmlite join has been silent for too long
  confirmed         INTEGER NOT NULL DEFAULT 0 CHECK (confirmed IN (0, 1)), -- 1: listed since the manager started
  cpus              INTEGER NOT NULL DEFAULT 0,
  memory_bytes      INTEGER NOT NULL DEFAULT 0,
  slots             INTEGER,                       -- label containerslots; NULL: no limit
  storage_driver    TEXT    NOT NULL DEFAULT '',
  image_store       TEXT    NOT NULL DEFAULT 'graph'  -- the two kinds give one image different IDs
                    CHECK (image_store IN ('graph', 'containerd')),
  kernel_version    TEXT    NOT NULL DEFAULT '',
  operating_system  TEXT    NOT NULL DEFAULT '',
  os_type           TEXT    NOT NULL DEFAULT '',
  architecture      TEXT    NOT NULL DEFAULT '',
  platforms         TEXT    NOT NULL DEFAULT '[]', -- what it runs, JSON: linux/amd64, linux/386, and those of its label platforms
  engine_version    TEXT    NOT NULL DEFAULT '',
  api_version       TEXT    NOT NULL DEFAULT '',   -- the highest the engine speaks
  min_api_version   TEXT    NOT NULL DEFAULT '',   -- the lowest
  clock_skew_ms     INTEGER NOT NULL DEFAULT 0,    -- engine's clock minus the manager's
  engine_labels     TEXT    NOT NULL DEFAULT '{}', -- as the engine gave them, a JSON object
  bad_labels        TEXT    NOT NULL DEFAULT '',   -- what is wrong with its labels resource.NAME, '' = nothing
  source            TEXT    NOT NULL DEFAULT '',   -- who names it: arguments, file, added (swarmlite node add), joined
                                                   -- (swarmlite join), or the dns:// address that leads to it;
                                                   -- lost: nobody, another host answers at its address
  line_name         TEXT    NOT NULL DEFAULT '',   -- name=… behind the address that the operator gave; '' = the host name
  line_labels       TEXT    NOT NULL DEFAULT '{}', -- label=… there, a JSON object
  line_tls          TEXT    NOT NULL DEFAULT '',   -- tls=… there: 'off', or a directory; '' = as the flags say
  skip_verify       INTEGER NOT NULL DEFAULT 0 CHECK (skip_verify IN (0, 1)), -- 1: its certificate is not checked
  docker_swarm      TEXT    NOT NULL DEFAULT '',   -- ID of the swarm (Docker's Swarm mode) its engine is in; '' = none
  swarm_manager     INTEGER NOT NULL DEFAULT 0 CHECK (swarm_manager IN (0, 1)), -- 1: and manages
  swarm_node        TEXT    NOT NULL DEFAULT '',   -- the engine's own ID in that swarm
  swarm_managers    TEXT    NOT NULL DEFAULT '[]', -- such IDs of the managers it knows, JSON
  added_at          INTEGER NOT NULL DEFAULT (strftime('%s','now')), -- unix seconds
  spec_version      INTEGER NOT NULL DEFAULT 1,    -- goes up with every docker node update
  kept_out          INTEGER NOT NULL DEFAULT 0 CHECK (kept_out IN (0, 1)), -- 1: taken out by docker node rm; stays away
                    -- until it is named anew: by swarmlite node add, or by a list that it was missing from meanwhile
  containers        INTEGER NOT NULL DEFAULT 0,    -- that count, reservations included; kept by triggers,
  used_nano_cpus    INTEGER NOT NULL DEFAULT 0,    -- as are the sums of what they reserve
  used_memory_bytes INTEGER NOT NULL DEFAULT 0,
  -- Nodes of one size, whose memory is the same to two digits, are ranked alike whatever is asked
  -- for, so that the best of them are the first in one of the indexes below: by what is asked for.
  -- Healthy ones only: while a node is listed at the start, its sums change with every container.
  size_class        TEXT GENERATED ALWAYS AS (cpus || ' CPUs, ' || printf('%.1e', memory_bytes)) VIRTUAL,
  load_cpus         REAL GENERATED ALWAYS AS (used_nano_cpus / 1e9 / cpus) VIRTUAL,
  load_memory       REAL GENERATED ALWAYS AS (used_memory_bytes * 1.0 / memory_bytes) VIRTUAL,
  load_both         REAL GENERATED ALWAYS AS (used_nano_cpus / 1e9 / cpus + used_memory_bytes * 1.0 / memory_bytes) VIRTUAL
) STRICT;
CREATE INDEX nodes_by_engine_id ON nodes (engine_id);
CREATE INDEX nodes_by_name ON nodes (name);
CREATE INDEX nodes_by_platforms ON nodes (platforms) WHERE state <> 'removed';
CREATE INDEX nodes_by_containers ON nodes (state, failures, size_class, containers) WHERE state = 'healthy';
CREATE INDEX nodes_by_load_cpus ON nodes (state, failures, size_class, load_cpus) WHERE state = 'healthy';
CREATE INDEX nodes_by_load_memory ON nodes (state, failures, size_class, load_memory) WHERE state = 'healthy';
CREATE INDEX nodes_by_load_both ON nodes (state, failures, size_class, load_both) WHERE state = 'healthy';

CREATE TABLE node_sizes (
  /* How many nodes there are of each state and size; kept by triggers. */
  state      TEXT    NOT NULL,
  size_class TEXT    NOT NULL,
  nodes      INTEGER NOT NULL,
  PRIMARY KEY (state, size_class)
) STRICT, WITHOUT ROWID;

CREATE TABLE join_tokens (
  /* Tokens with which hosts join (swarmlite token). A token itself is nowhere kept. */
  hash    TEXT    PRIMARY KEY,                     -- SHA-256, hexadecimal
  made_at INTEGER NOT NULL DEFAULT (strftime('%s','now')) -- unix seconds
) STRICT, WITHOUT ROWID;

CREATE TABLE node_info (
  /* What engines say of themselves, whole. Apart from nodes, whose rows are written
     with every create and must stay short. */
  node_id INTEGER PRIMARY KEY REFERENCES nodes (id) ON DELETE CASCADE,
  info    TEXT NOT NULL,                           -- the engine's own /info, JSON
  version TEXT NOT NULL                            -- the engine's own /version, JSON
) STRICT;

CREATE TABLE node_labels (
  /* Labels that constraints see. 'operator' (docker node update) covers 'line' (behind the
     address that the operator gave), which covers 'engine'; 'automatic' ones (storagedriver,
     kernelversion, operatingsystem, ostype, architecture) cannot be covered. */
  node_id INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  key     TEXT    NOT NULL,
  value   TEXT    NOT NULL,
  source  TEXT    NOT NULL CHECK (source IN ('engine', 'line', 'operator', 'automatic')),
  PRIMARY KEY (node_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX node_labels_by_value ON node_labels (key, value, node_id);

CREATE TABLE label_values (
  /* The values that a label has, and on how many nodes; kept by triggers. */
  key   TEXT    NOT NULL,
  value TEXT    NOT NULL,
  nodes INTEGER NOT NULL,
  PRIMARY KEY (key, value)
) STRICT, WITHOUT ROWID;

CREATE TABLE containers (
  /* What the engines report, one row a container; also written when an engine
     has answered a create, before the client hears of it. The rows lie in the order of
     lists, oldest first: a list of all of them is one pass over the table. */
  age          INTEGER PRIMARY KEY,            -- created_at, and within a second id, in one number: created_at << 28 | id
  id           INTEGER NOT NULL UNIQUE,
  node_id      INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  container_id TEXT    NOT NULL,               -- 64 hex digits
  name         TEXT    NOT NULL,               -- without the slash; unique unless made behind our back
  image        TEXT    NOT NULL,               -- as the create gave it
  image_id     TEXT    NOT NULL DEFAULT '',
  state        TEXT    NOT NULL CHECK (state IN
               ('created', 'running', 'paused', 'restarting', 'removing', 'exited', 'dead', 'stopping', 'unknown')),
  created_at   INTEGER NOT NULL,               -- unix seconds, the engine's clock
  status_head  TEXT    NOT NULL DEFAULT '',    -- docker ps shows head, the time since status_at, tail:
  status_at    INTEGER,                        -- unix seconds, our clock; NULL: the words hold no time
  status_tail  TEXT    NOT NULL DEFAULT '',    -- 'Up ' … ' (healthy)', 'Exited (0) ' … ' ago'
  swarm_id     TEXT    NOT NULL DEFAULT '',    -- label com.docker.swarm.id, given by us at the create
  counted      INTEGER NOT NULL DEFAULT 1 CHECK (counted IN (0, 1)), -- 1: takes room on its node
  inspected    INTEGER NOT NULL DEFAULT 0 CHECK (inspected IN (0, 1)), -- 1: what it reserves is known
  nano_cpus    INTEGER NOT NULL DEFAULT 0,     -- reserved, 1e-9 CPU
  memory_bytes INTEGER NOT NULL DEFAULT 0,     -- reserved
  summary      TEXT    NOT NULL,               -- the engine's own list entry less its Status, JSON
  stays        TEXT    NOT NULL DEFAULT '',    -- why it is not moved from a node that drains or has failed, or was not yet
  UNIQUE (container_id, node_id)
) STRICT;
CREATE INDEX containers_by_name ON containers (name);
CREATE INDEX containers_by_node ON containers (node_id, state);
CREATE INDEX containers_by_swarm_id ON containers (swarm_id) WHERE swarm_id <> '';
CREATE INDEX containers_by_stays ON containers (node_id) WHERE stays <> '';

CREATE TABLE container_labels (
  /* Labels of containers, for filters and affinities. */
  container INTEGER NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
  key       TEXT    NOT NULL,
  value     TEXT    NOT NULL,
  PRIMARY KEY (container, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX container_labels_by_value ON container_labels (key, value);

CREATE TABLE reservations (
  /* Room promised on a node until its engine has answered a create. Rows found
     at start, or left by an engine that did not answer in time, are settled by a
     look at the node: for the label com.docker.swarm.id of a container, for the
     name of a network or volume. */
  id           INTEGER PRIMARY KEY,
  kind         TEXT    NOT NULL DEFAULT 'container' CHECK (kind IN ('container', 'network', 'volume')),
  node_id      INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  placement_id INTEGER NOT NULL REFERENCES placements (id),
  swarm_id     TEXT    NOT NULL UNIQUE,
  name         TEXT    NOT NULL,               -- '' = the engine names the volume
  image        TEXT    NOT NULL,
  nano_cpus    INTEGER NOT NULL CHECK (nano_cpus >= 0),
  memory_bytes INTEGER NOT NULL CHECK (memory_bytes >= 0),
  labels       TEXT    NOT NULL DEFAULT '{}',  -- of the container to be, JSON
  volumes      TEXT    NOT NULL DEFAULT '[]',  -- named volumes it will bring into being, JSON
  group_key    TEXT    NOT NULL DEFAULT '',    -- label=value of the group it belongs to; '' = none
  state        TEXT    NOT NULL DEFAULT 'asking' CHECK (state IN ('asking', 'unknown', 'taken')),
               -- unknown: nobody waits for the engine's answer any more; taken, within one transaction only:
               -- its room passes on to the container, and the sums of its node stay as they are
  made_at      INTEGER NOT NULL DEFAULT (strftime('%s','now')) -- unix seconds
) STRICT;
CREATE INDEX reservations_by_node ON reservations (node_id)
  /* A container's that is under way is looked for by its identity. */
  WHERE kind <> 'container' OR state = 'unknown' OR state = 'taken';
CREATE UNIQUE INDEX reservations_by_name ON reservations (name) WHERE kind = 'container';
CREATE INDEX reservations_by_group ON reservations (group_key) WHERE group_key <> '';

CREATE TABLE create_bodies (
  /* What containers were made from, to make them anew on another node: only of those with a reschedule
     policy. A body holds the environment with its values, so this table holds secrets. Written with the
     reservation, or told from the engine's inspect; gone with the last container of that key. */
  key     TEXT    PRIMARY KEY,                 -- containers.swarm_id, or container_id of one that has none
  body    TEXT    NOT NULL,                    -- of the create, JSON
  query   TEXT    NOT NULL DEFAULT '',         -- its parameters but the name
  version TEXT    NOT NULL DEFAULT '',         -- of the API it is written in; '' = the engine's own
  stale   INTEGER NOT NULL DEFAULT 0 CHECK (stale IN (0, 1)) -- 1: the container was updated since; to be told anew
) STRICT, WITHOUT ROWID;

CREATE TABLE moves (
  /* Containers that were to be made anew on another node, theirs being drained or lost: one row an
     attempt. First the copy is made, under a name of its own, and started (step make). If that fails it
     is taken away again (undo). Else the old container is stopped and the copy takes its name (swap).
     Whatever step the manager died in goes on, or is undone, from here. */
  id           INTEGER PRIMARY KEY,
  why          TEXT    NOT NULL CHECK (why IN ('drain', 'node failure')),
  name         TEXT    NOT NULL,
  image        TEXT    NOT NULL,
  swarm_id     TEXT    NOT NULL,               -- of both, unless the old one was made behind our back
  container_id TEXT    NOT NULL,               -- the old one
  running      INTEGER NOT NULL CHECK (running IN (0, 1)), -- 1: it ran, so the copy is started
  from_id      INTEGER NOT NULL,               -- its node. No reference: a node may go, its history stays
  from_node    TEXT    NOT NULL,               -- that node's name at the time
  from_engine  TEXT    NOT NULL,               -- and its engine's ID
  copy_name    TEXT    NOT NULL,               -- what the copy is called until it takes the name
  copy_id      TEXT    NOT NULL DEFAULT '',    -- '' until an engine has made it
  to_id        INTEGER,                        -- NULL until then
  to_node      TEXT    NOT NULL DEFAULT '',
  step         TEXT    NOT NULL DEFAULT 'make' CHECK (step IN ('make', 'swap', 'undo', 'done')),
  outcome      TEXT    NOT NULL DEFAULT 'under way' CHECK (outcome IN ('under way', 'moved', 'failed')),
  error        TEXT    NOT NULL DEFAULT '',
  lacks_image  INTEGER NOT NULL DEFAULT 0 CHECK (lacks_image IN (0, 1)), -- 1: failed for it; tried again when it appears
  old          TEXT    NOT NULL DEFAULT '' CHECK (old IN ('', 'to rename', 'to stop', 'kept', 'removed')),
               -- what became of the old one, or is to be done with it when its node is back
  began_at     INTEGER NOT NULL DEFAULT (strftime('%s','now')), -- unix seconds
  ended_at     INTEGER                         -- unix seconds; NULL: under way
) STRICT;
CREATE INDEX moves_by_container ON moves (container_id);
CREATE INDEX moves_by_step ON moves (step) WHERE step <> 'done';
CREATE INDEX moves_by_old ON moves (old) WHERE old IN ('to rename', 'to stop');

CREATE TABLE waiting (
  /* Creates that wait for room (label com.docker.swarm.wait, flag -wait), in line by id. Once the
     head of the line has waited a quarter of its time, nodes that could be of use to it are kept
     from those behind. A row goes when its create is placed or its time is up, or its client
     hangs up; all go when the manager starts. */
  id       INTEGER PRIMARY KEY,
  name     TEXT    NOT NULL UNIQUE,            -- held: a create of that name is in conflict
  image    TEXT    NOT NULL,
  request  TEXT    NOT NULL,                   -- what placement looks at, JSON
  since_ms INTEGER NOT NULL,                   -- unix milliseconds
  until_ms INTEGER NOT NULL,                   -- unix milliseconds
  nodes    TEXT    NOT NULL,                   -- ids of nodes where it could go but for room, JSON
  message  TEXT    NOT NULL                    -- why it does not fit yet
) STRICT;

CREATE TABLE renames (
  /* Both names of a container whose rename an engine was asked for, held until a read that was
     begun after its answer has told which one it has. */
  id           INTEGER PRIMARY KEY,
  node_id      INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  container_id TEXT    NOT NULL,
  name         TEXT    NOT NULL,               -- the new one
  old_name     TEXT    NOT NULL,
  answered     INTEGER NOT NULL DEFAULT 0 CHECK (answered IN (0, 1)) -- 1: or nobody waits any more
) STRICT;

CREATE TABLE ports (
  /* Host ports in use on a node, or promised: exactly one of container and reservation is set. */
  id          INTEGER PRIMARY KEY,
  node_id     INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  container   INTEGER REFERENCES containers (id) ON DELETE CASCADE,
  reservation INTEGER REFERENCES reservations (id) ON DELETE CASCADE,
  host_ip     TEXT    NOT NULL,                -- '' = every address; 'host' = not published, exposed in the host's network
  host_port   INTEGER NOT NULL CHECK (host_port BETWEEN 1 AND 65535),
  last_port   INTEGER NOT NULL,                -- of a promised range; else = host_port
  protocol    TEXT    NOT NULL,                -- tcp, udp, sctp
  CHECK ((container IS NULL) <> (reservation IS NULL))
) STRICT;
CREATE INDEX ports_by_node ON ports (node_id, protocol, host_port);
CREATE INDEX ports_by_container ON ports (container) WHERE container IS NOT NULL;
CREATE INDEX ports_by_reservation ON ports (reservation) WHERE reservation IS NOT NULL;

CREATE TABLE port_ranges (
  /* From which ranges of host ports containers have theirs (-p 8080-8090:80): relays of
     -relay-ports stay in them. */
  container  INTEGER NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
  protocol   TEXT    NOT NULL,
  first_port INTEGER NOT NULL,
  last_port  INTEGER NOT NULL,
  PRIMARY KEY (container, protocol, first_port, last_port)
) STRICT, WITHOUT ROWID;

CREATE TABLE namespaces (
  /* Which containers are in the PID or IPC namespace of another (docker run --pid container:x), as
     their create said; in whose network they are is in containers.summary. */
  container INTEGER NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
  kind      TEXT    NOT NULL CHECK (kind IN ('PID', 'IPC')),
  owner     TEXT    NOT NULL,                  -- name or ID of the other
  PRIMARY KEY (container, kind)
) STRICT, WITHOUT ROWID;

CREATE TABLE node_resources (
  /* Countable things that nodes have, GPUs above all: by their labels resource.NAME, else
     by what their engines report (GenericResources, CDI devices). */
  node_id INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  name    TEXT    NOT NULL,                    -- gpu
  amount  INTEGER NOT NULL CHECK (amount >= 0),
  devices TEXT    NOT NULL DEFAULT '[]',       -- their IDs, JSON; '[]' = not known
  PRIMARY KEY (node_id, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX node_resources_by_name ON node_resources (name, amount, node_id);

CREATE TABLE resources (
  /* Countable things that containers were given, or were promised: exactly one of container and
     reservation is set. A container that was stopped keeps its rows, which do not count. */
  id          INTEGER PRIMARY KEY,
  node_id     INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  container   INTEGER REFERENCES containers (id) ON DELETE CASCADE,
  reservation INTEGER REFERENCES reservations (id) ON DELETE CASCADE,
  name        TEXT    NOT NULL,                -- gpu
  amount      INTEGER NOT NULL CHECK (amount = -1 OR amount > 0), -- -1: all that the node has
  device      TEXT    NOT NULL,                -- its ID, of one; '' = any
  CHECK ((container IS NULL) <> (reservation IS NULL))
) STRICT;
CREATE INDEX resources_by_node ON resources (node_id, name);
CREATE INDEX resources_by_container ON resources (container) WHERE container IS NOT NULL;
CREATE INDEX resources_by_reservation ON resources (reservation) WHERE reservation IS NOT NULL;

CREATE TABLE relays (
  /* With -relay-ports: the manager's own ports that lead to containers' published ones. */
  protocol    TEXT    NOT NULL CHECK (protocol IN ('tcp', 'udp')),
  listen_port INTEGER NOT NULL CHECK (listen_port BETWEEN 1 AND 65535), -- on the manager
  container   INTEGER NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
  host_ip     TEXT    NOT NULL,                -- on the node; '' = every address
  host_port   INTEGER NOT NULL,                -- on the node
  PRIMARY KEY (protocol, listen_port)
) STRICT, WITHOUT ROWID;
CREATE INDEX relays_by_container ON relays (container);

CREATE TABLE mounts (
  /* Where containers have volumes and host paths. */
  container   INTEGER NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
  type        TEXT    NOT NULL,                -- volume, bind, tmpfs, …
  name        TEXT    NOT NULL,                -- of the volume, '' for other types
  source      TEXT    NOT NULL,
  destination TEXT    NOT NULL,
  PRIMARY KEY (container, destination)
) STRICT, WITHOUT ROWID;
CREATE INDEX mounts_by_name ON mounts (name) WHERE name <> '';

CREATE TABLE container_networks (
  /* Which networks containers are attached to. */
  container  INTEGER NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
  name       TEXT    NOT NULL,
  network_id TEXT    NOT NULL,
  PRIMARY KEY (container, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX container_networks_by_id ON container_networks (network_id);

CREATE TABLE images (
  /* Images by node, as the engines list them. */
  node_id    INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  image_id   TEXT    NOT NULL,                 -- sha256:…
  parent_id  TEXT    NOT NULL DEFAULT '',
  created_at INTEGER NOT NULL,                 -- unix seconds
  size_bytes INTEGER NOT NULL DEFAULT 0,
  dangling   INTEGER NOT NULL DEFAULT 0 CHECK (dangling IN (0, 1)), -- 1: has no tag
  platform   TEXT,                             -- linux/amd64; '' = it does not say, NULL = not asked yet
  summary    TEXT    NOT NULL,                 -- the engine's own list entry, JSON
  PRIMARY KEY (node_id, image_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX images_by_id ON images (image_id, platform);

CREATE TABLE image_names (
  /* What images are called on each node: docker.io/library/busybox:latest, or name@sha256:…. */
  node_id  INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  name     TEXT    NOT NULL,                   -- normalised reference
  image_id TEXT    NOT NULL,
  PRIMARY KEY (node_id, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_names_by_name ON image_names (name, image_id, node_id);

CREATE TABLE image_copies (
  /* Copies that have another ID than what they were copied from: the image stores of the two
     nodes are of different kinds. */
  node_id  INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  image_id TEXT    NOT NULL,                   -- on this node
  copy_of  TEXT    NOT NULL,                   -- the image's ID where it came from
  PRIMARY KEY (node_id, image_id, copy_of)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_copies_by_source ON image_copies (copy_of);

CREATE TABLE image_tags (
  /* What a tag means in the cluster: set by the last pull, build, load, import, commit or tag.
     A node that has another image of this name gets the right one before it is used there. */
  name     TEXT    PRIMARY KEY,                -- normalised reference
  image_id TEXT    NOT NULL,
  node_id  INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE, -- where it was set
  set_at   INTEGER NOT NULL DEFAULT (strftime('%s','now')) -- unix seconds
) STRICT, WITHOUT ROWID;

CREATE TABLE pulls (
  /* An image that a create found missing everywhere: the pull that follows lands on the node
     that the create had picked. */
  name     TEXT    PRIMARY KEY,                -- normalised reference
  node_id  INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  until_at INTEGER NOT NULL                    -- unix seconds; forgotten afterwards
) STRICT, WITHOUT ROWID;

CREATE TABLE builders (
  /* Where a client builds: its session, its cache and its base images meet there. */
  client  TEXT    PRIMARY KEY,                 -- certificate's name, else address; or the ID of a BuildKit session
  node_id INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  set_at  INTEGER NOT NULL DEFAULT (strftime('%s','now')) -- unix seconds
) STRICT, WITHOUT ROWID;

CREATE TABLE networks (
  /* Networks by node, as the engines list them. */
  node_id    INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  network_id TEXT    NOT NULL,
  name       TEXT    NOT NULL,
  driver     TEXT    NOT NULL,
  scope      TEXT    NOT NULL,                 -- local, swarm, global
  created_at TEXT    NOT NULL,                 -- as the engine writes it
  listed     INTEGER NOT NULL DEFAULT 1 CHECK (listed IN (0, 1)),
             -- 0: a swarm's network that this worker does not use now; kept while no manager is known
  summary    TEXT    NOT NULL,                 -- the engine's own list entry, JSON
  PRIMARY KEY (node_id, network_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX networks_by_name ON networks (name);
CREATE INDEX networks_by_id ON networks (network_id);

CREATE TABLE network_labels (
  /* Labels of networks, for groups. */
  node_id    INTEGER NOT NULL,
  network_id TEXT    NOT NULL,
  key        TEXT    NOT NULL,
  value      TEXT    NOT NULL,
  PRIMARY KEY (node_id, network_id, key),
  FOREIGN KEY (node_id, network_id) REFERENCES networks (node_id, network_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX network_labels_by_value ON network_labels (key, value);

CREATE TABLE volumes (
  /* Volumes by node, as the engines list them. */
  node_id    INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  name       TEXT    NOT NULL,
  driver     TEXT    NOT NULL,
  scope      TEXT    NOT NULL,                 -- local, global
  created_at TEXT    NOT NULL,                 -- as the engine writes it
  summary    TEXT    NOT NULL,                 -- the engine's own list entry, JSON
  PRIMARY KEY (node_id, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX volumes_by_name ON volumes (name);

CREATE TABLE volume_labels (
  /* Labels of volumes, for groups. */
  node_id INTEGER NOT NULL,
  name    TEXT    NOT NULL,
  key     TEXT    NOT NULL,
  value   TEXT    NOT NULL,
  PRIMARY KEY (node_id, name, key),
  FOREIGN KEY (node_id, name) REFERENCES volumes (node_id, name) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX volume_labels_by_value ON volume_labels (key, value);

CREATE TABLE execs (
  /* Which node has an exec; written before the client hears its ID. */
  exec_id      TEXT    PRIMARY KEY,
  node_id      INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  container_id TEXT    NOT NULL,
  made_at      INTEGER NOT NULL DEFAULT (strftime('%s','now')) -- unix seconds
) STRICT, WITHOUT ROWID;

CREATE TABLE placements (
  /* The ledger: every decision, as long as -history keeps it; those of containers that are still
     there stay. See the views why and ran. */
  id           INTEGER PRIMARY KEY,
  at           INTEGER NOT NULL DEFAULT (strftime('%s','now')), -- unix seconds
  kind         TEXT    NOT NULL DEFAULT 'container'
               CHECK (kind IN ('container', 'network', 'volume', 'image', 'build')),
  name         TEXT    NOT NULL,
  image        TEXT    NOT NULL DEFAULT '',
  swarm_id     TEXT    NOT NULL DEFAULT '',
  request      TEXT    NOT NULL DEFAULT '{}',  -- what placement looked at, JSON; no environment values
  strategy     TEXT    NOT NULL,
  seed         INTEGER NOT NULL DEFAULT 0,     -- strategy random: gives the same order again
  nodes        INTEGER NOT NULL,               -- nodes looked at
  fitting      INTEGER,                        -- nodes that passed every filter; NULL: over 200 nodes, not counted
  node_id      INTEGER,                        -- NULL: no node fits. No reference: a node may go, its history stays
  node         TEXT    NOT NULL DEFAULT '',    -- the node's name at that time
  score        INTEGER,
  plan         TEXT    NOT NULL DEFAULT 'exact'    -- how the nodes to rank were found. exact: all of them;
               CHECK (plan IN ('exact', 'sizes', 'few', 'home')), -- sizes: the best of each size, by index;
               -- few: those that one clause names; home: where the workload belongs
  next_node    TEXT    NOT NULL DEFAULT '',    -- the name of the second best, '' = there was none
  next_score   INTEGER,
  outcome      TEXT    NOT NULL
               CHECK (outcome IN ('reserved', 'created', 'refused', 'failed', 'moved', 'unknown')),
               -- refused: no node fits; failed: the engine said no; moved: the engine was silent before
               -- it was asked; unknown: the engine was asked and has not answered.
               -- An image or a build reserves nothing and is reserved while it is under way
  message      TEXT    NOT NULL DEFAULT '',    -- the error that the client got
  container_id TEXT    NOT NULL DEFAULT '',
  ended_at     INTEGER,                        -- unix seconds, when the thing had gone; of a container: had
               -- stopped for good, had been removed or moved. NULL: it is there, or never was
  decide_us    INTEGER NOT NULL DEFAULT 0,     -- microseconds to decide and reserve
  engine_us    INTEGER NOT NULL DEFAULT 0      -- microseconds the engine took to answer
) STRICT;
CREATE INDEX placements_by_name ON placements (name)
  /* With those of containers it would cost each create a page. */
  WHERE kind = 'network' OR kind = 'volume';
CREATE INDEX placements_by_container ON placements (container_id) WHERE container_id <> '';
CREATE INDEX placements_by_outcome ON placements (outcome) WHERE outcome = 'reserved' AND kind IN ('image', 'build');

CREATE TABLE placement_filters (
  /* How many nodes each clause refused; a node counts for the first that refuses it. */
  placement_id INTEGER NOT NULL REFERENCES placements (id) ON DELETE CASCADE,
  filter       TEXT    NOT NULL,               -- health, constraint, resources, …
  clause       TEXT    NOT NULL,               -- in words: fail constraint storage==ssd
  refused      INTEGER NOT NULL,
  PRIMARY KEY (placement_id, filter, clause)
) STRICT, WITHOUT ROWID;

CREATE TABLE placement_looks (
  /* What was thought of each node: all of up to 200 for a success, up to 50 for a refusal. One row,
     for a row a node costs more than the decision; see the view placement_nodes. */
  placement_id INTEGER PRIMARY KEY REFERENCES placements (id) ON DELETE CASCADE,
  nodes        TEXT    NOT NULL                -- JSON: [[node, address, the clause that refuses it, score], …]
) STRICT;

CREATE TABLE events (
  /* Every event of every engine and of the cluster; the last 100,000 are kept. */
  id        INTEGER PRIMARY KEY,
  at_nano   INTEGER NOT NULL,                  -- unix nanoseconds when it reached us, our clock
  node_id   INTEGER,                           -- NULL: the manager's own
  node      TEXT    NOT NULL DEFAULT '',
  time_nano INTEGER NOT NULL,                  -- unix nanoseconds, the engine's clock
  type      TEXT    NOT NULL,
  action    TEXT    NOT NULL,
  actor     TEXT    NOT NULL DEFAULT '',       -- ID or name of what it happened to
  body      TEXT    NOT NULL                   -- the event as the engine sent it, JSON
) STRICT;
CREATE UNIQUE INDEX events_once ON events (node_id, time_nano, actor, action, type);
CREATE INDEX events_by_arrival ON events (at_nano);

CREATE TRIGGER containers_added AFTER INSERT ON containers
WHEN new.counted AND NOT EXISTS (SELECT 1 FROM reservations WHERE node_id = new.node_id AND state = 'taken') BEGIN
  /* The sums of nodes: what is counted there is added. One sum at a time, and none by 0: an UPDATE writes
     the indexes of every column that it names, and their pages are most of what a create costs. */
  UPDATE nodes SET containers = containers + 1 WHERE id = new.node_id;
  UPDATE nodes SET used_nano_cpus = used_nano_cpus + new.nano_cpus WHERE id = new.node_id AND new.nano_cpus <> 0;
  UPDATE nodes SET used_memory_bytes = used_memory_bytes + new.memory_bytes WHERE id = new.node_id AND new.memory_bytes <> 0;
END;
CREATE TRIGGER containers_gone AFTER DELETE ON containers WHEN old.counted BEGIN
  /* It is subtracted when it goes, */
  UPDATE nodes SET containers = containers - 1 WHERE id = old.node_id;
  UPDATE nodes SET used_nano_cpus = used_nano_cpus - old.nano_cpus WHERE id = old.node_id AND old.nano_cpus <> 0;
  UPDATE nodes SET used_memory_bytes = used_memory_bytes - old.memory_bytes WHERE id = old.node_id AND old.memory_bytes <> 0;
END;
CREATE TRIGGER containers_changed AFTER UPDATE OF counted, nano_cpus, memory_bytes ON containers
WHEN (old.counted <> new.counted OR old.nano_cpus <> new.nano_cpus OR old.memory_bytes <> new.memory_bytes)
 AND NOT EXISTS (SELECT 1 FROM reservations WHERE node_id = new.node_id AND state = 'taken') BEGIN
  /* and both when it changes; a container never changes its node. */
  UPDATE nodes SET containers = containers - old.counted + new.counted WHERE id = new.node_id AND old.counted <> new.counted;
  UPDATE nodes SET used_nano_cpus = used_nano_cpus - old.counted * old.nano_cpus + new.counted * new.nano_cpus
   WHERE id = new.node_id AND old.counted * old.nano_cpus <> new.counted * new.nano_cpus;
  UPDATE nodes SET used_memory_bytes = used_memory_bytes - old.counted * old.memory_bytes + new.counted * new.memory_bytes
   WHERE id = new.node_id AND old.counted * old.memory_bytes <> new.counted * new.memory_bytes;
END;
CREATE TRIGGER reservations_added AFTER INSERT ON reservations WHEN new.kind = 'container' BEGIN
  /* A reservation counts as the container that it will be; */
  UPDATE nodes SET containers = containers + 1 WHERE id = new.node_id;
  UPDATE nodes SET used_nano_cpus = used_nano_cpus + new.nano_cpus WHERE id = new.node_id AND new.nano_cpus <> 0;
  UPDATE nodes SET used_memory_bytes = used_memory_bytes + new.memory_bytes WHERE id = new.node_id AND new.memory_bytes <> 0;
END;
CREATE TRIGGER reservations_gone AFTER DELETE ON reservations WHEN old.kind = 'container' AND old.state <> 'taken' BEGIN
  /* what it reserves never changes. */
  UPDATE nodes SET containers = containers - 1 WHERE id = old.node_id;
  UPDATE nodes SET used_nano_cpus = used_nano_cpus - old.nano_cpus WHERE id = old.node_id AND old.nano_cpus <> 0;
  UPDATE nodes SET used_memory_bytes = used_memory_bytes - old.memory_bytes WHERE id = old.node_id AND old.memory_bytes <> 0;
END;

CREATE TRIGGER placements_ended AFTER DELETE ON containers BEGIN
  /* A container that has gone ran until it stopped, or until now; */
  UPDATE placements SET ended_at = CASE WHEN old.state IN ('exited', 'dead') AND old.status_at IS NOT NULL
         THEN max(at, old.status_at) ELSE CAST(strftime('%s', 'now') AS INTEGER) END
   WHERE container_id = old.container_id AND container_id <> ''
     AND NOT EXISTS (SELECT 1 FROM containers WHERE container_id = old.container_id);
END;
CREATE TRIGGER placements_go_on AFTER INSERT ON containers BEGIN
  /* but one whose node is back in the cluster goes on. */
  UPDATE placements SET ended_at = NULL
   WHERE container_id = new.container_id AND container_id <> '' AND ended_at IS NOT NULL;
END;
CREATE TRIGGER networks_gone AFTER DELETE ON networks BEGIN
  /* The placement of a network ends with it, */
  UPDATE placements SET ended_at = CAST(strftime('%s', 'now') AS INTEGER)
   WHERE name = old.name AND kind = 'network' AND outcome = 'created' AND node_id = old.node_id AND ended_at IS NULL;
END;
CREATE TRIGGER volumes_gone AFTER DELETE ON volumes BEGIN
  /* and so does that of a volume. */
  UPDATE placements SET ended_at = CAST(strftime('%s', 'now') AS INTEGER)
   WHERE name = old.name AND kind = 'volume' AND outcome = 'created' AND node_id = old.node_id AND ended_at IS NULL;
END;
CREATE TRIGGER containers_forgotten AFTER DELETE ON containers BEGIN
  /* A create body goes with the last container made from it, */
  DELETE FROM create_bodies WHERE key = CASE old.swarm_id WHEN '' THEN old.container_id ELSE old.swarm_id END
     AND NOT EXISTS (SELECT 1 FROM containers WHERE swarm_id = old.swarm_id AND swarm_id <> '')
     AND NOT EXISTS (SELECT 1 FROM reservations WHERE swarm_id = old.swarm_id);
END;
CREATE TRIGGER reservations_forgotten AFTER DELETE ON reservations BEGIN
  /* or with the create that came to nothing. */
  DELETE FROM create_bodies WHERE key = old.swarm_id
     AND NOT EXISTS (SELECT 1 FROM containers WHERE swarm_id = old.swarm_id);
END;

CREATE TRIGGER nodes_added AFTER INSERT ON nodes BEGIN
  /* How many nodes there are of a size: a new one, */
  INSERT INTO node_sizes VALUES (new.state, new.size_class, 1) ON CONFLICT DO UPDATE SET nodes = nodes + 1;
END;
CREATE TRIGGER nodes_gone AFTER DELETE ON nodes BEGIN
  /* one less, */
  UPDATE node_sizes SET nodes = nodes - 1 WHERE state = old.state AND size_class = old.size_class;
  DELETE FROM node_sizes WHERE state = old.state AND size_class = old.size_class AND nodes = 0;
END;
CREATE TRIGGER nodes_changed AFTER UPDATE OF state, cpus, memory_bytes ON nodes
WHEN old.state <> new.state OR old.size_class <> new.size_class BEGIN
  /* and one that has another state or size now. */
  INSERT INTO node_sizes VALUES (new.state, new.size_class, 1) ON CONFLICT DO UPDATE SET nodes = nodes + 1;
  UPDATE node_sizes SET nodes = nodes - 1 WHERE state = old.state AND size_class = old.size_class;
  DELETE FROM node_sizes WHERE state = old.state AND size_class = old.size_class AND nodes = 0;
END;

CREATE TRIGGER node_labels_added AFTER INSERT ON node_labels BEGIN
  /* On how many nodes a label has a value: one more, */
  INSERT INTO label_values VALUES (new.key, new.value, 1) ON CONFLICT DO UPDATE SET nodes = nodes + 1;
END;
CREATE TRIGGER node_labels_gone AFTER DELETE ON node_labels BEGIN
  /* one less (also where a label replaces another: the manager's connection has recursive_triggers), */
  UPDATE label_values SET nodes = nodes - 1 WHERE key = old.key AND value = old.value;
  DELETE FROM label_values WHERE key = old.key AND value = old.value AND nodes = 0;
END;
CREATE TRIGGER node_labels_changed AFTER UPDATE OF value ON node_labels WHEN old.value <> new.value BEGIN
  /* and another value. */
  INSERT INTO label_values VALUES (new.key, new.value, 1) ON CONFLICT DO UPDATE SET nodes = nodes + 1;
  UPDATE label_values SET nodes = nodes - 1 WHERE key = old.key AND value = old.value;
  DELETE FROM label_values WHERE key = old.key AND value = old.value AND nodes = 0;
END;

CREATE VIEW node_load AS
  /* What the scheduler selects from: each node with its room, overcommit included. */
  SELECT n.id, n.name, n.address, n.engine_id, n.state, n.availability, n.answers, n.lapsed, n.confirmed, n.failures,
         n.containers, n.slots, n.os_type, n.architecture, n.platforms, n.api_version, n.min_api_version,
         CAST(n.cpus * 1000000000 * (1 + m.overcommit) AS INTEGER) AS nano_cpus,
         n.used_nano_cpus,
         CAST(n.memory_bytes * (1 + m.overcommit) AS INTEGER) AS memory_bytes,
         n.used_memory_bytes, n.size_class, n.load_cpus, n.load_memory, n.load_both
    FROM nodes n, manager m
   WHERE m.id = 1 /* one row: SQLite would build an index otherwise */ AND n.state <> 'removed';

CREATE VIEW resources_held AS
  /* The countable things that are taken: by containers that count, and by creates under way. */
  SELECT r.node_id, r.name, r.amount, r.device FROM resources r
   WHERE r.reservation IS NOT NULL OR EXISTS (SELECT 1 FROM containers c WHERE c.id = r.container AND c.counted);

CREATE VIEW resource_load AS
  /* What of each countable thing a node has and how much of it is taken. */
  SELECT r.node_id, r.name, r.amount, r.devices,
         coalesce((SELECT sum(iif(h.amount < 0, r.amount, h.amount)) FROM resources_held h
                    WHERE h.node_id = r.node_id AND h.name = r.name), 0) AS used
    FROM node_resources r;

CREATE VIEW cluster AS
  /* The nodes at a glance. */
  SELECT l.name AS node, l.state, l.availability, l.containers,
         printf('%.2f / %.2f', l.used_nano_cpus / 1e9, l.nano_cpus / 1e9) AS "reserved CPUs",
         printf('%.0f / %.0f MiB', l.used_memory_bytes / 1048576.0, l.memory_bytes / 1048576.0) AS "reserved memory",
         coalesce((SELECT group_concat(r.name || ' ' || r.used || ' / ' || r.amount, ', ') FROM resource_load r
                    WHERE r.node_id = l.id), '') AS "reserved resources",
         coalesce((SELECT group_concat(key || '=' || value, ', ') FROM node_labels b
                    WHERE b.node_id = l.id AND b.source <> 'automatic'), '') AS labels,
         n.engine_version AS engine, l.address,
         trim(n.step || ': ' || n.error, ': ') AS error /* the last one, behind what was being done */
    FROM node_load l JOIN nodes n ON n.id = l.id
   ORDER BY l.name;

CREATE VIEW ps AS
  /* The containers at a glance, newest first; status is as of now, without the time. */
  SELECT substr(c.container_id, 1, 12) AS id, c.name, c.image, n.name AS node, c.state,
         CASE WHEN n.state = 'healthy' THEN '' ELSE n.state END AS "node trouble",
         c.nano_cpus / 1e9 AS cpus, c.memory_bytes / 1048576 AS "memory MiB",
         datetime(c.created_at, 'unixepoch') AS created,
         coalesce((SELECT group_concat(CASE WHEN p.host_ip = '' THEN n.ip ELSE p.host_ip END || ':' || p.host_port
                          || '/' || p.protocol, ', ')
                     FROM ports p WHERE p.container = c.id AND p.host_ip <> 'host'), '') AS ports
    FROM containers c JOIN nodes n ON n.id = c.node_id
   ORDER BY c.age DESC;

CREATE VIEW placement_nodes AS
  /* Node by node, as far as it is kept. */
  SELECT l.placement_id, j.value ->> 0 AS node, j.value ->> 1 AS address,
         j.value ->> 2 AS refused_by /* the clause in words; '' = it fits */,
         j.value ->> 3 AS score /* NULL when it does not fit */
    FROM placement_looks l, json_each(l.nodes) j;

CREATE VIEW why AS
  /* Why each thing is where it is, or why it is nowhere; newest first. */
  SELECT p.id, datetime(p.at, 'unixepoch') AS at, p.kind, p.name, p.image, p.outcome, p.node,
         CASE p.outcome
           WHEN 'refused' THEN p.message
           WHEN 'failed' THEN p.node || ' was chosen and its engine refused: ' || p.message
           WHEN 'moved' THEN p.node || ' was chosen and did not answer, so another node was asked'
           WHEN 'unknown' THEN p.node || ' was asked and has not answered: ' || p.message
           ELSE p.strategy || ' chose ' || p.node
                || CASE WHEN p.fitting = 1 THEN ', the only one of ' || p.nodes || ' that fits'
                        ELSE coalesce(' of ' || p.fitting || ' that fit', '') || ' among ' || p.nodes END
                || coalesce(' (score ' || p.score || ')', '')
                || CASE WHEN p.fitting IS NULL AND p.next_node <> ''
                        THEN ', before ' || p.next_node || coalesce(' (score ' || p.next_score || ')', '') ELSE '' END
         END
         || CASE WHEN p.outcome = 'refused' THEN ''
                 ELSE coalesce((SELECT '; ' || group_concat(f.refused || ' ' || f.clause, ', ')
                                  FROM placement_filters f WHERE f.placement_id = p.id), '') END AS reason
    FROM placements p
   ORDER BY p.id DESC;

CREATE VIEW ran AS
  /* What ran where and when (UTC): since it was made, until it stopped for good, was removed or
     moved, as far as that is known; 'now' while it is there. 'now' sorts behind every time, so
     what was there at three is: SELECT * FROM ran WHERE '2026-11-24 03:00' BETWEEN since AND until */
  SELECT coalesce(c.name, p.name) AS name, p.image, p.node, datetime(p.at, 'unixepoch') AS since,
         coalesce(datetime(coalesce(m.ended_at, p.ended_at, CASE WHEN c.state IN ('exited', 'dead') THEN coalesce(c.status_at, p.at) END),
                           'unixepoch'), 'now') AS until,
         substr(p.container_id, 1, 12) AS id, p.id AS placement
    FROM placements p LEFT JOIN containers c ON c.container_id = p.container_id
         LEFT JOIN moves m ON m.container_id = p.container_id AND m.outcome = 'moved'
   WHERE p.kind = 'container' AND p.outcome = 'created'
  UNION ALL
  SELECT c.name, c.image, n.name, datetime(c.created_at, 'unixepoch'),
         coalesce(datetime(coalesce(m.ended_at, CASE WHEN c.state IN ('exited', 'dead') THEN coalesce(c.status_at, c.created_at) END),
                           'unixepoch'), 'now'),
         substr(c.container_id, 1, 12), NULL /* made behind our back, or longer ago than the ledger goes */
    FROM containers c JOIN nodes n ON n.id = c.node_id LEFT JOIN moves m ON m.container_id = c.container_id AND m.outcome = 'moved'
   WHERE NOT EXISTS (SELECT 1 FROM placements p WHERE p.container_id = c.container_id AND p.container_id <> '');

CREATE VIEW drain AS
  /* What is still on nodes that are drained, or have failed and are to be left; and why. */
  SELECT n.name AS node, n.availability, n.state, c.name AS container, c.image, c.state AS "container state",
         coalesce((SELECT 'is being moved' || CASE m.to_node WHEN '' THEN '' ELSE ' to ' || m.to_node END
                     FROM moves m WHERE m.container_id = c.container_id AND m.outcome = 'under way'), c.stays) AS "stays because"
    FROM containers c JOIN nodes n ON n.id = c.node_id
   WHERE n.availability = 'drain' OR c.stays <> ''
   ORDER BY n.name, c.name;

CREATE VIEW trouble AS
  /* What a person should look at; empty when all is well. */
  SELECT 'node ' || n.state AS what, n.name AS node,
         rtrim(n.address || ' since ' || datetime(n.state_at, 'unixepoch') || ': ' || n.step || ': ' || n.error, ': ') AS detail
    FROM nodes n WHERE n.state IN ('pending', 'unhealthy', 'duplicate')
  UNION ALL
  SELECT 'not registered', n.name, 'swarmlite join on the host is silent, it takes no new containers'
    FROM nodes n WHERE n.lapsed = 1 AND n.state <> 'removed'
  UNION ALL
  SELECT 'bad answer', n.name, n.error FROM nodes n WHERE n.state = 'healthy' AND n.error <> ''
  UNION ALL
  SELECT 'label not understood', n.name, n.bad_labels FROM nodes n WHERE n.bad_labels <> '' AND n.state <> 'removed'
  UNION ALL
  SELECT 'clock', n.name, printf('engine is %+.1f s off the manager', n.clock_skew_ms / 1000.0)
    FROM nodes n WHERE abs(n.clock_skew_ms) >= 2000
  UNION ALL
  SELECT 'two kinds of image store', group_concat(name, ', '), 'these have containerd''s, the others not: image IDs differ between them, names work everywhere'
    FROM nodes
   WHERE image_store = 'containerd' AND engine_id IS NOT NULL AND state <> 'removed'
     AND EXISTS (SELECT 1 FROM nodes o WHERE o.image_store = 'graph' AND o.engine_id IS NOT NULL AND o.state <> 'removed')
   GROUP BY image_store
  UNION ALL
  SELECT 'API too old', o.name, 'speaks up to ' || o.api_version || ', ' || n.name || ' from ' || n.min_api_version || ' on: no client version fits both'
    FROM nodes o JOIN nodes n ON CAST(substr(n.min_api_version, 3) AS INTEGER) > CAST(substr(o.api_version, 3) AS INTEGER)
   WHERE o.state <> 'removed' AND n.state <> 'removed' AND o.api_version LIKE '1.%' AND n.min_api_version LIKE '1.%'
   GROUP BY o.id
  UNION ALL
  SELECT 'name used twice', group_concat(n.name, ', '), c.name
    FROM containers c JOIN nodes n ON n.id = c.node_id WHERE c.name <> '' GROUP BY c.name HAVING count(*) > 1
  UNION ALL
  SELECT 'id used twice', group_concat(n.name, ', '), c.container_id
    FROM containers c JOIN nodes n ON n.id = c.node_id GROUP BY c.container_id HAVING count(*) > 1
  UNION ALL
  SELECT 'overcommitted', l.name, printf('%.2f of %.2f CPUs, %.0f of %.0f MiB', l.used_nano_cpus / 1e9,
         l.nano_cpus / 1e9, l.used_memory_bytes / 1048576.0, l.memory_bytes / 1048576.0)
    FROM node_load l
   WHERE l.state = 'healthy' AND (l.used_nano_cpus > l.nano_cpus OR l.used_memory_bytes > l.memory_bytes)
  UNION ALL
  SELECT 'overcommitted', n.name, printf('%d of %d %s', r.used, r.amount, r.name)
    FROM resource_load r JOIN nodes n ON n.id = r.node_id WHERE n.state = 'healthy' AND r.used > r.amount
  UNION ALL
  SELECT 'device used twice', n.name, h.name || ' ' || h.device
    FROM resources_held h JOIN nodes n ON n.id = h.node_id WHERE h.device <> '' GROUP BY n.id, h.name, h.device HAVING count(*) > 1
  UNION ALL
  SELECT CASE n.availability WHEN 'drain' THEN 'left on a drained node' ELSE 'left on a lost node' END, n.name, c.name || ': ' || c.stays
    FROM containers c JOIN nodes n ON n.id = c.node_id WHERE c.stays <> '' AND (n.availability = 'drain' OR n.state <> 'healthy')
  UNION ALL
  SELECT 'create without answer', n.name, r.name || ' since ' || datetime(r.made_at, 'unixepoch')
    FROM reservations r JOIN nodes n ON n.id = r.node_id
   WHERE r.made_at < CAST(strftime('%s', 'now') AS INTEGER) - 60;
