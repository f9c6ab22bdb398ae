"""What a report counts beyond the funnel: what other thresholds would keep, what each step changed, categories."""
