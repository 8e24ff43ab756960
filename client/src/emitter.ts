// Typed events. A listener that throws does not keep the others from hearing.

export class Emitter<Events extends Record<string, unknown[]>> {
  private listeners = new Map<keyof Events, Set<(...values: any[]) => void>>();

  /** Calls `listener` at each such event; gives a function that ends it. */
  on<K extends keyof Events>(event: K, listener: (...values: Events[K]) => void): () => void {
    let all = this.listeners.get(event);
    if (!all) this.listeners.set(event, (all = new Set()));
    all.add(listener);
    return () => this.off(event, listener);
  }

  off<K extends keyof Events>(event: K, listener: (...values: Events[K]) => void): void {
    this.listeners.get(event)?.delete(listener);
  }

  /** @internal */
  emit<K extends keyof Events>(event: K, ...values: Events[K]): void {
    for (const listener of [...(this.listeners.get(event) ?? [])]) {
      try {
        listener(...values);
      } catch (error) {
        setTimeout(() => { throw error; }); // to where uncaught errors of the application go
      }
    }
  }
}
