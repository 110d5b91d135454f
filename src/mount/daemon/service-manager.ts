/** What a mount in the foreground tells systemd (sd_notify(3)), where that has started it and waits for word. */
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
