// A platform in TypeScript: OpenFeature's own SDK and provider resolve the limit, and plain HTTP records the outcomes.
//
//   npm install @openfeature/server-sdk @openfeature/ofrep-provider tsx
//   export NAUTILUS_DOOR_URL=http://127.0.0.1:8484 NAUTILUS_DOOR_KEY=nautilus_...
//   npx tsx own_platform.ts http://127.0.0.1:8901                # records how its tasks go, and keeps its own limit
//   npx tsx own_platform.ts http://127.0.0.1:8901 --resolve      # and lets Nautilus say the limit
import { OpenFeature } from '@openfeature/server-sdk';
import { OFREPProvider } from '@openfeature/ofrep-provider';

const { NAUTILUS_DOOR_URL: door = '', NAUTILUS_DOOR_KEY: key = '' } = process.env;
const [service, resolves] = [process.argv[2], process.argv.includes('--resolve')];
const headers = { 'Content-Type': 'application/json', Authorization: `Bearer ${key}` };
const question = '{"searches": [{"query": ["timeout", "request"], "most": 5, "without": []}], "once": false}';
const OWN_LIMIT_S = 1;
const TASKS_PER_SECOND = 4;
const MOST_WAITING = 20_000;

interface Outcome {
  task_id: string;
  task_type: string;
  started_at: Date;
  finished_at: Date;
  duration_s: number;
  failure?: 'timeout' | 'invalid_result' | 'error' | 'lost'; // absent for a success
  reason?: string;
  detail?: string;
}
const outcomes: Outcome[] = []; // what the door has not acknowledged yet

const client = OpenFeature.getClient();

async function runTask(): Promise<void> {
  const taskId = `support-${crypto.randomUUID()}`;
  const startedAt = new Date();
  // Where the door is away, the answer is the caller's own default.
  const context = { targetingKey: taskId, task_type: 'support' };
  const limitS = resolves ? await client.getNumberValue('support.timeout_s', OWN_LIMIT_S, context) : OWN_LIMIT_S;

  let how: Partial<Outcome> = {};
  try {
    const answer = await fetch(`${service}/search`, {
      method: 'POST', body: question, signal: AbortSignal.timeout(1000 * limitS),
    });
    await answer.text();
    if (!answer.ok) how = { failure: 'error', reason: `upstream_${answer.status}` };
  } catch (error) {
    const { name, message } = error as Error;
    how = { failure: name === 'TimeoutError' ? 'timeout' : 'error', reason: name, detail: message.slice(0, 500) };
  }

  const finishedAt = new Date();
  const when = { started_at: startedAt, finished_at: finishedAt, duration_s: (+finishedAt - +startedAt) / 1000 };
  outcomes.push({ task_id: taskId, task_type: 'support', ...when, ...how });
  outcomes.splice(0, outcomes.length - MOST_WAITING); // while the door is away, the oldest go first
}

async function report(batch: Outcome[]): Promise<void> {
  if (batch.length === 0) return;
  const body = JSON.stringify({ outcomes: batch });
  const answer = await fetch(`${door}/v1/outcomes`, { method: 'POST', headers, body }).catch(() => null);
  if (answer?.ok) return;
  if (answer) console.error(await answer.text());
  if (answer?.status === 422) {
    // One of them cannot be taken, and must not hold up the others for ever.
    const half = Math.ceil(batch.length / 2);
    if (batch.length > 1) for (const part of [batch.slice(0, half), batch.slice(half)]) await report(part);
    return;
  }
  outcomes.unshift(...batch); // what is not acknowledged is sent again: twice is recorded once
}

async function main(): Promise<void> {
  await OpenFeature.setProviderAndWait(new OFREPProvider({ baseUrl: door, headers: Object.entries(headers) }));
  setInterval(runTask, 1000 / TASKS_PER_SECOND);
  for (;;) {
    await report(outcomes.splice(0, 1000));
    await new Promise((wait) => setTimeout(wait, 500));
  }
}

main();
