-- Events come over a bus, which keeps what was not consumed yet; no place in core's log is kept here.
DROP TABLE feed_cursors;
