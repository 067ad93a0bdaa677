#!/usr/bin/env bash
# The memory API of `agentmem serve`, by hand: remember, find, forget.
#
# AGENTMEM_URL is the server's address, AGENTMEM_KEY a key of `agentmem keys add` (any text, if it has no keys).
set -euo pipefail

call() { # METHOD PATH [BODY]
  curl --silent --show-error --fail-with-body --request "$1" "${AGENTMEM_URL:-http://127.0.0.1:8000}/v1/memories$2" \
    --header "Authorization: Bearer ${AGENTMEM_KEY:-none}" --header "Content-Type: application/json" ${3:+--data "$3"}
}

added=$(call POST "" '{"text": "The spare key is under the blue pot.", "tags": ["house"], "ttl": "30d"}')
echo "remembered: $added"

found=$(call POST /search '{"query": "Where is the key?", "top_k": 1, "explain": true}')
echo "found: $found"

listed=$(call GET '?tags=house&sort=-created_at&limit=5')
echo "listed: $listed"

pruned=$(call POST /prune '{"max_memories": 0, "dry_run": true}')
echo "would go: $pruned"

id=$(sed -E 's/.*"id":"([^"]+)".*/\1/' <<< "$added")
forgotten=$(call DELETE "/$id")
echo "forgotten: $forgotten"
