"""A job for the pool: counts the primes p with LOW <= p < HIGH and prints how many there are.

primes.py LOW HIGH        or the two numbers on standard input
"""

import sys


def is_prime(n: int) -> bool:
    """Trial division, because the job is meant to keep a processor busy for a while."""
    if n < 4:
        return n > 1
    if n % 2 == 0:
        return False
    divisor = 3
    while divisor * divisor <= n:
        if n % divisor == 0:
            return False
        divisor += 2
    return True


def main() -> None:
    words = sys.argv[1:] or sys.stdin.read().split()
    if len(words) != 2:
        raise SystemExit(f"primes needs two numbers, LOW and HIGH; it was given {words}")
    low, high = int(words[0]), int(words[1])
    print(sum(1 for n in range(low, high) if is_prime(n)))


if __name__ == "__main__":
    main()
