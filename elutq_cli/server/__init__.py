"""An endpoint that speaks OpenAI's protocol over one session of the runtime."""
