"""OpenAI's own client against ``agentmem serve``: what is told in one dialogue is known in the next.

AGENTMEM_URL is the server's address, AGENTMEM_KEY a key of ``agentmem keys add`` (any text, if it has no keys).
"""

import os

from openai import OpenAI

url = os.environ.get("AGENTMEM_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("AGENTMEM_KEY", "none"))
model = client.models.list().data[0].id

client.responses.create(model=model, input="My dog is called Biscuit.")

# Another dialogue, a word at a time.
with client.responses.stream(model=model, input="What is my dog called?") as stream:
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
    answer = stream.get_final_response()
print()

# Why: the memories that the answer attended to, with their share of the attention.
for memory in answer.agentmem["memories"]:
    print(f"{memory['attention']:6.1%}  {memory['role']}: {memory['text']}")
