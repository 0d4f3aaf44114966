"""From records to statements: tables with intervals, the best size, the adviser."""
