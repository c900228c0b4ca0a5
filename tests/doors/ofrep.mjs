// Every flag is asked of the door, by OpenFeature's remote evaluation protocol.
//   node ofrep.mjs resolve | platform        (see platform.mjs)
import { OpenFeature } from '@openfeature/server-sdk';
import { OFREPProvider } from '@openfeature/ofrep-provider';
import { DOOR, KEY, main } from './platform.mjs';

const provider = new OFREPProvider({ baseUrl: DOOR, headers: [['Authorization', `Bearer ${KEY}`]] });
await OpenFeature.setProviderAndWait(provider);
// The door records the exposure with its answer.
await main(OpenFeature.getClient(), { recordsExposures: true });
