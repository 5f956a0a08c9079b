"""redis-py: a queue with blocking reads, a pipeline, and publish and subscribe.

redis_talk.py hear HOST PORT | redis_talk.py say HOST PORT. It knows nothing of NATs.
"""

import sys

import redis


def hear(host: str, port: str) -> None:
    """Subscribe, then do what comes by the queue until the end."""
    client = redis.Redis(host, int(port), decode_responses=True)
    with client.pubsub() as subscription:
        subscription.subscribe("news")
        assert subscription.get_message(timeout=30)["type"] == "subscribe"
        print("listening", flush=True)
        while (task := client.blpop("tasks", timeout=30)[1]) != "end":
            client.rpush("results", task[::-1])
        message = subscription.get_message(ignore_subscribe_messages=True, timeout=30)
        print("news", message["data"], flush=True)


def say(host: str, port: str) -> None:
    """Give work, collect results, publish, and say that it is the end."""
    client = redis.Redis(host, int(port), decode_responses=True)
    with client.pipeline() as pipeline:
        for task in ("abc", "defg"):
            pipeline.rpush("tasks", task)
        print("queued", pipeline.execute()[-1] >= 1, flush=True)
    print("results", [client.blpop("results", timeout=30)[1] for _ in range(2)], flush=True)
    print("heard by", client.publish("news", "done"), flush=True)
    client.rpush("tasks", "end")


if __name__ == "__main__":
    {"hear": hear, "say": say}[sys.argv[1]](*sys.argv[2:])
