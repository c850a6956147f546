-- The cheapest node first, by a label that says what an hour costs:
--
--   docker node update --label-add price=0.096 node-1
--   swarmlite -strategy examples/cheapest.sql …
--
-- A node without the label is taken last. Among equal prices the fuller node is
-- taken, so that dear nodes stay empty and can be given back.
SELECT n.name AS node,
       coalesce(CAST(l.value AS REAL), 1e9) - n.containers / 1e6 AS score
  FROM node_load n
  LEFT JOIN node_labels l ON l.node_id = n.id AND l.key = 'price'
