// A platform as small as one can be: each task resolves its limit, does its work, and says how it went.
//
// It reads one JSON document from standard input and
//   resolve    prints how each of `tasks` resolves each of `flags` (a default by key), as one JSON document, after it has
//              recorded an outcome of each, of `task_type`, that echoes what it resolved of `parameter`;
//   platform   runs tasks of `task_type` within the limit `parameter`, `per_second` of them, until SIGTERM, and then
//              prints what it did. Work takes `median_s`, lognormal with `sigma`, and after `slower_after_s` it takes
//              `slower_by` times as long, as the services that tasks ask do one day.
import { OpenFeature } from '@openfeature/server-sdk';
import { randomUUID } from 'node:crypto';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';

export const DOOR = process.env.NAUTILUS_DOOR ?? 'http://127.0.0.1';
export const KEY = process.env.NAUTILUS_KEY ?? '';
const AT_ONCE = 32;
const OUTCOMES_EVERY_MS = 250;
const MOST_OUTCOMES = 500;

export async function main(client, { recordsExposures }) {
  const plan = JSON.parse(await text(process.stdin));
  const answer = process.argv[2] === 'platform' ? await platform(client, plan, recordsExposures) : await resolve(client, plan);
  await OpenFeature.close();
  console.log(JSON.stringify(answer));
}

async function resolve(client, { tasks, flags, task_type, parameter }) {
  const resolved = {};
  const outcomes = [];
  const waiting = [...tasks];
  const worker = async () => {
    for (let task = waiting.shift(); task !== undefined; task = waiting.shift()) {
      resolved[task] = {};
      for (const [key, fallback] of Object.entries(flags)) {
        const details = await evaluate(client, key, fallback, { targetingKey: task });
        const { value, variant, errorCode, errorMessage, flagMetadata } = details;
        const { version, experiment } = flagMetadata ?? {};
        resolved[task][key] = { value, variant, version, experiment, errorCode, errorMessage };
      }
      const at = new Date();
      const { variant, version, experiment } = resolved[task][parameter];
      const echo = { [parameter]: { version, variant, experiment } };
      outcomes.push({ task_id: task, task_type, started_at: at, finished_at: at, duration_s: 0, resolved: echo });
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  const done = { contradicting: 0 };
  if (task_type) await flush(outcomes, done);
  return { resolved, ...done };
}

function evaluate(client, key, fallback, context) {
  switch (typeof fallback) {
    case 'boolean':
      return client.getBooleanDetails(key, fallback, context);
    case 'number':
      return client.getNumberDetails(key, fallback, context);
    default:
      return client.getStringDetails(key, fallback, context);
  }
}

async function platform(client, plan, recordsExposures) {
  const done = { tasks: 0, failed: 0, unresolved: 0, contradicting: 0, limits: {} };
  const outcomes = [];
  const running = new Set();
  const started = Date.now();
  let isStopping = false;
  process.on('SIGTERM', () => (isStopping = true));
  const flushing = (async () => {
    while (!isStopping || running.size || outcomes.length) {
      await flush(outcomes, done);
      await sleep(OUTCOMES_EVERY_MS);
    }
  })();
  while (!isStopping) {
    const isSlow = Date.now() - started > plan.slower_after_s * 1000;
    const work = plan.median_s * Math.exp(plan.sigma * gaussian()) * (isSlow ? plan.slower_by : 1);
    const task = runTask(client, plan, work, recordsExposures, done).then((outcome) => {
      outcomes.push(outcome);
      running.delete(task);
    });
    running.add(task);
    await sleep(1000 / plan.per_second);
  }
  await flushing;
  return done;
}

async function runTask(client, plan, workS, recordsExposures, done) {
  const id = `${plan.task_type}-${randomUUID()}`;
  const context = { targetingKey: id, task_type: plan.task_type };
  const resolution = await client.getNumberDetails(plan.parameter, plan.fallback, context);
  const startedAt = new Date();
  const { experiment, version } = resolution.flagMetadata ?? {};
  const isExposed = resolution.variant === 'control' || resolution.variant === 'treatment';
  if (isExposed && !recordsExposures) {
    // Before the work: a task that never reports is then a failure of its arm.
    const exposure = { experiment_id: experiment, task_id: id, variant: resolution.variant, assigned_at: startedAt };
    await post('/v1/exposures', { exposures: [exposure] });
  }
  const limitS = resolution.value;
  const isLate = workS > limitS;
  await sleep(1000 * Math.min(workS, limitS));
  const finishedAt = new Date();
  done.tasks += 1;
  done.failed += isLate;
  done.unresolved += resolution.errorCode !== undefined;
  done.limits[limitS] = (done.limits[limitS] ?? 0) + 1;
  return {
    task_id: id,
    task_type: plan.task_type,
    started_at: startedAt,
    finished_at: finishedAt,
    duration_s: (finishedAt - startedAt) / 1000,
    failure: isLate ? 'timeout' : null,
    reason: isLate ? 'no_answer_in_time' : '',
    ...(version && { resolved: { [plan.parameter]: { version, variant: resolution.variant, experiment } } }),
  };
}

async function flush(outcomes, done) {
  while (outcomes.length) {
    const batch = outcomes.slice(0, MOST_OUTCOMES);
    const { contradicting } = await post('/v1/outcomes', { outcomes: batch });
    done.contradicting += contradicting;
    outcomes.splice(0, batch.length); // only what is acknowledged is forgotten
  }
}

async function post(path, document) {
  const headers = { 'Content-Type': 'application/json', Authorization: `Bearer ${KEY}` };
  const request = { method: 'POST', headers, body: JSON.stringify(document) };
  for (;;) {
    const response = await fetch(DOOR + path, request).catch(() => null);
    if (response?.ok) return response.json();
    const isAway = response === null || response.status === 429 || response.status === 503;
    if (!isAway) throw new Error(`${path}: ${response.status} ${await response.text()}`);
    await sleep(1000 * Number(response?.headers.get('Retry-After') ?? 1));
  }
}

function gaussian() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}
