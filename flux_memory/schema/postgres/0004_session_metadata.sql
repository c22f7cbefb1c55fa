-- A filter by metadata reads all of what its index has not sorted in yet, and each add puts a row there: 4 MB, as
-- PostgreSQL has it, cost milliseconds at every listing. 128 kB cost a fraction of one, and adds nothing.

ALTER INDEX sessions_by_metadata SET (gin_pending_list_limit = 128);
