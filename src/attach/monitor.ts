/** A process that is attached to an image: what the mount asks it, one request at a time, and what it answers. */
import { PcowError } from '../engine/index.js';
import { type AttachEvent, type AttachServer, RequestKind, type RequestName } from '../engine/attach-server.js';
import { Mutex } from '../mount/mutex.js';

/** Milliseconds for which `status` and `metrics` wait for a monitor that is busy with something long. */
const PATIENCE = 1000;

/** Milliseconds for which a report counts: to look at a file and to read it are two requests. */
const FRESH = 250;

export interface RequestOptions {
  /** For example the snapshot's name. */
  text?: string;
  value?: number;
  /** Milliseconds; default: as long as the connection lives. A monitor that takes longer is let go. */
  limit?: number;
}

interface Waiting {
  resolve(answer: string): void;
  reject(error: PcowError): void;
}

/** Times in milliseconds. */
interface Report {
  answer: Promise<string | null>;
  asked: number;
  answered: number | null;
}

export class Monitor {
  readonly since = new Date();
  /** As the kernel has it. */
  command = '';
  readonly #server: AttachServer;
  readonly #requests = new Mutex();
  /** Of the request that was sent last: the server allows no second one before. */
  #waiting: (Waiting & { id: number }) | null = null;
  #handingOver: Waiting | null = null;
  #lastId = 0;
  #gone: string | null = null;
  readonly #reports = new Map<RequestName, Report>();

  constructor(
    server: AttachServer,
    readonly connection: number,
    readonly pid: number,
    readonly uid: number,
    readonly writable: boolean,
  ) {
    this.#server = server;
  }

  /** As messages name it. */
  get process(): string {
    return this.command === '' ? `process ${this.pid}` : `process ${this.pid} (${this.command})`;
  }

  /** Sends the files of a chain, the image first, with its lock where it is to write; or for a resumed one only the word. */
  handOver(paths: string[] | 'as before'): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#gone !== null) {
        reject(this.#lost());
        return;
      }
      this.#handingOver = {
        resolve: () => {
          resolve();
        },
        reject,
      };
      if (paths === 'as before') {
        this.#server.confirm(this.connection);
      } else {
        this.#server.handOver(this.connection, paths, this.writable);
      }
    });
  }

  /** Rejects with the monitor's own error, or with PCOW_IO where the process ends before it has answered. */
  request(name: RequestName, options: RequestOptions = {}): Promise<string> {
    return this.#requests.run(() => this.#send(name, options));
  }

  async #send(name: RequestName, { text = '', value = 0, limit }: RequestOptions): Promise<string> {
    if (this.#gone !== null) {
      throw this.#lost();
    }
    const id = (this.#lastId += 1);
    const timer =
      limit === undefined
        ? undefined
        : setTimeout(() => {
            this.#server.close(this.connection, `it did not answer within ${limit / 1000} s`);
          }, limit);
    try {
      return await new Promise<string>((resolve, reject) => {
        this.#waiting = { id, resolve, reject };
        this.#server.request(this.connection, id, RequestKind[name], value, text);
      });
    } finally {
      clearTimeout(timer);
    }
  }

  /** What it says of itself, or null where it is busy or has gone: nobody's `status` is to hang on a monitor. */
  report(name: 'status' | 'metrics'): Promise<string | null> {
    const now = Date.now();
    let report = this.#reports.get(name);
    if (!report || (report.answered !== null && now - report.answered > FRESH)) {
      const answer = this.request(name).catch(() => null);
      const asked: Report = { answer, asked: now, answered: null };
      void answer.then(() => {
        asked.answered = Date.now();
      });
      this.#reports.set(name, asked);
      report = asked;
    }
    return report.answered === null
      ? Promise.race([report.answer, after(Math.max(0, report.asked + PATIENCE - now))])
      : report.answer;
  }

  /** What the server reports of this connection. */
  heard(event: Exclude<AttachEvent, { kind: 'attach' | 'resume' }>): void {
    switch (event.kind) {
      case 'handed over':
        settle(this.#handingOver, event.ok, '', event);
        this.#handingOver = null;
        return;
      case 'answer':
        if (this.#waiting?.id === event.id) {
          const waiting = this.#waiting;
          this.#waiting = null;
          settle(waiting, event.ok, event.text, { ...event, text: `${this.process}: ${event.text}` });
        }
        return;
      case 'closed':
        this.#gone = event.text === '' ? 'it has ended, or let the image go' : event.text;
        this.#handingOver?.reject(this.#lost());
        this.#waiting?.reject(this.#lost());
        this.#handingOver = this.#waiting = null;
    }
  }

  #lost(): PcowError {
    return new PcowError('PCOW_IO', `the connection to ${this.process} was lost: ${this.#gone ?? ''}`);
  }
}

function settle(waiting: Waiting | null, ok: boolean, answer: string, failure: { errno: number; text: string }): void {
  if (ok) {
    waiting?.resolve(answer);
  } else {
    waiting?.reject(new PcowError('PCOW_IO', failure.text, { errno: failure.errno }));
  }
}

function after(milliseconds: number): Promise<null> {
  return new Promise((resolve) => {
    setTimeout(resolve, milliseconds, null).unref();
  });
}
