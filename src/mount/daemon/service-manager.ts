/**
 * Notifies systemd (sd_notify(3)) about a mount in the foreground, if systemd has started it and
 * waits for this.
 */
import { notifyManager } from '../../engine/daemon.js';
import { sentenceOf } from '../failure.js';
import { log } from '../log.js';

/** `text` is shown by `systemctl status`. */
export function tellReady(text: string): void {
  tell(`READY=1\nSTATUS=${text.replaceAll('\n', ' ')}\n`);
}

export function tellStopping(): void {
  tell('STOPPING=1\n');
}

function tell(message: string): void {
  const socket = process.env.NOTIFY_SOCKET;
  if (socket === undefined || socket === '') {
    return;
  }
  try {
    notifyManager(socket, message);
  } catch (error) {
    log(sentenceOf(error));
  }
}
