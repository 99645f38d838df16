"""Operations that both sides share: files, processes, HTTP pages, TLS, diagnostics, telemetry."""
