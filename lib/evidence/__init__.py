"""From records to statements: tables with intervals, scaling, the adviser, figures."""
