-- The node that has waited longest for a container first: round robin that counts
-- creates and not what is left of them. For build and test jobs that come and go,
-- where spread would give the node whose job was quickest the next one as well.
--
--   swarmlite -strategy examples/least-recently-used.sql …
SELECT n.id AS node,
       coalesce((SELECT max(p.id) FROM placements p
                  WHERE p.node_id = n.id AND p.outcome IN ('reserved', 'created')), 0) AS score
  FROM node_load n
