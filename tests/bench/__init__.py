"""The gateway measured beside its own limits in one sitting: `scripts/bench`, explained in `docs/performance.md`."""
